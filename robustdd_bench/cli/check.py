"""`robustdd check-plugin` and `robustdd new-plugin`: for authors of plugins."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from robustdd_bench.cli.shared.output import print_hanging
from robustdd_bench.errors import UsageError, unknown_name
from robustdd_bench.plugins import SINGULAR, Entry, Registry, collect, get_plugin_manager

_KINDS = {"method": "distillers", "attack": "attacks", "executor": "executors"}


def find_entry(registry: Registry, name: str, kind: str | None) -> Entry:
    """The method, attack or executor of that name.

    Args:
        registry: what is installed.
        name: its name.
        kind: "method", "attack" or "executor"; None for any.

    Raises:
        UsageError: there is none, or there are several.
    """
    if kind is not None:
        return registry.get(_KINDS[kind], name)
    found = [
        registry.entries[each][name] for each in _KINDS.values() if name in registry.names(each)
    ]
    if not found:
        known = [known for each in _KINDS.values() for known in registry.names(each)]
        raise unknown_name("method, attack or executor", name, known)
    if len(found) > 1:
        several = [SINGULAR[entry.kind] for entry in found]
        article = {word: "an" if word[0] in "aeiou" else "a" for word in several}
        are = " and ".join(f"{article[word]} {word}" for word in several)
        raise UsageError(f"{name!r} is {are}; say which with --kind")
    return found[0]


@click.command("check-plugin")
@click.argument("name")
@click.option("--kind", type=click.Choice(list(_KINDS)), help="What NAME is, if it is several.")
@click.option(
    "--executor-set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set an option of the executor that is checked; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def check_plugin(
    ctx: click.Context, name: str, kind: str | None, assignments: tuple[str, ...], as_json: bool
) -> None:
    """Check an installed method, attack or executor against what the benchmark relies on.

    Every check is run, on a tiny task on the CPU; the exit code is 1 if one fails. Workers of an
    executor have to see the folder for temporary files: TMPDIR names another one.
    """
    from robustdd_bench.config import build_config, config_class, parse_assignments

    entry = find_entry(_registry(ctx), name, kind)
    settings = parse_assignments(assignments)
    if settings and entry.kind != "executors":
        raise UsageError(
            f"--executor-set is for executors; {name!r} is registered as {SINGULAR[entry.kind]}"
        )
    from robustdd_bench.conformance import check_attack, check_distiller, check_executor

    if entry.kind == "executors":
        if settings:
            what = f"executor {name!r}"
            build_config(config_class(entry.load(), what), settings, what)
        findings = check_executor(entry, settings)
    else:
        check = check_distiller if entry.kind == "distillers" else check_attack
        findings = check(entry)
    failed = sum(not finding.passed for finding in findings)
    if as_json:
        report = {
            "kind": SINGULAR[entry.kind],
            "name": entry.name,
            "plugin": entry.plugin,
            "passed": failed == 0,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            mark = "ok  " if finding.passed else "FAIL"
            print_hanging(f"{mark}  {finding.check:<{width}}  ", finding.detail)
        verdict = f"{failed} of {len(findings)} checks failed" if failed else "all checks passed"
        click.echo(f"{SINGULAR[entry.kind]} {entry.name!r}: {verdict}")
    if failed:
        ctx.exit(1)


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(list(_KINDS)),
    default="method",
    show_default=True,
    help="What to make.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="DIR",
    help="Folder that gets the package's folder.  [default: here]",
)
@click.pass_context
def new_plugin(ctx: click.Context, name: str, kind: str, into: Path) -> None:
    """Write the package of a new method, attack or executor that passes check-plugin.

    It registers NAME and is called robustdd-NAME. Nothing is ever overwritten.
    """
    from robustdd_bench.conformance.skeletons import write_skeleton

    folder = write_skeleton(name, kind, into, _registry(ctx))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            click.echo(str(path))
    click.echo(f"next: pip install --editable {folder}", err=True)
    click.echo(f"then: robustdd check-plugin {name} --kind {kind}", err=True)


def _registry(ctx: click.Context) -> Registry:
    """What is installed: as the whole command line sees it, or found anew."""
    registry = getattr(ctx.obj, "registry", None)
    return registry if isinstance(registry, Registry) else collect(get_plugin_manager())
