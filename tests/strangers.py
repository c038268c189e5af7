"""Installed distributions by hand: what pip leaves on the path, with an entry point."""

from pathlib import Path

HOOK = "from robustdd_bench.hookspecs import hookimpl\nimport click\n\n\n"


def install(folder: Path, name: str, code: str, module: str | None = None) -> Path:
    """A distribution `robustdd-NAME` with the plugin NAME, whose module holds `code`."""
    module = module or f"stranger_{name}"
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(HOOK + code)
    info = folder / f"robustdd_{name}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: robustdd-{name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[robustdd]\n{name} = {module}\n")
    return folder


def command(name: str, body: str = "pass", doc: str = "A stranger's command.") -> str:
    """Code of a plugin that adds one command."""
    return (
        "@hookimpl\n"
        "def robustdd_register_commands(cli):\n"
        f"    @cli.command({name!r})\n"
        "    def stranger():\n"
        f"        {doc!r}\n"
        f"        {body}\n\n"
    )


def method(name: str, target: str = "nowhere:Method", summary: str = "from outside") -> str:
    """Code of a plugin that registers one method."""
    return (
        "@hookimpl\n"
        "def robustdd_register_distillers(register):\n"
        f"    register({name!r}, {target!r}, {summary!r})\n\n"
    )
