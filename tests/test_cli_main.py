"""The frame of the command line: speed, errors in one line, exit codes, commands of plugins."""

import importlib
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import strangers

from robustdd_bench import __version__
from robustdd_bench.cli.main import COMMANDS, cli, main
from robustdd_bench.cli.shared.group import Group
from robustdd_bench.cli.shared.session import Session
from robustdd_bench.errors import PluginError, RunFailedError, UsageError
from robustdd_bench.registry.commit import full_version

HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "pydantic", "matplotlib", "PIL")
SLOW = ("rich", "jinja2", "importlib.metadata", "importlib.abc", "email", "zipfile", "tempfile")
SLOW += ("socket", "logging", "random", "robustdd_bench.text.tables")
"""Modules of a few milliseconds each, which a plain answer does without."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROBUSTDD_DEBUG", "ROBUSTDD_DISABLED_PLUGINS", "_ROBUSTDD_COMPLETE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Install plugins of strangers for this test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def _install(name: str, code: str) -> None:
        strangers.install(tmp_path, name, code)
        importlib.invalidate_caches()

    yield _install
    for module in set(sys.modules) - before:
        if module.startswith("stranger_"):
            del sys.modules[module]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Call a command that raises; return the exit code."""

    def _call(error: BaseException) -> int:
        def callback() -> None:
            raise error

        lazy = COMMANDS["list"]
        broken = click.Command("list", callback=callback)
        monkeypatch.setattr(type(lazy), "load", lambda self: broken)
        return main(["list"])

    return _call


def robustdd(
    *args: str, path: Path | None = None, **options: object
) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ROBUSTDD", "_ROBUSTDD"))}
    env |= options.pop("env", {})
    if path is not None:
        env["PYTHONPATH"] = str(path)
    command = [sys.executable, "-m", "robustdd_bench", *args]
    return subprocess.run(command, env=env, text=True, check=False, **options)


# --- speed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [["--help"], ["list"], ["list", "--json"], ["plugins"], ["run", "-h"], ["--version"]]
)
def test_help_and_lists_import_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys; before = set(sys.modules); from robustdd_bench.cli.main import main; "
        f"assert main({args}) == 0; print(sorted(set({HEAVY + SLOW}) & set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("args", [["--help"], ["list"]])
def test_help_and_list_answer_in_less_than_three_tenths_of_a_second(args: list[str]) -> None:
    def once() -> float:
        # Processor time of the child, not the clock: other processes do not count.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert robustdd(*args, capture_output=True).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    best = 1.0
    for _ in range(5):  # the first call may have to compile the modules
        best = min(best, once())
        if best < 0.3:
            return
    pytest.fail(f"robustdd {' '.join(args)} took {best:.2f} s")


def test_a_built_in_command_is_found_without_loading_a_plugin() -> None:
    session = Session()
    context = click.Context(click.Group("robustdd"), obj=session)
    assert cli.get_command(context, "show") is not None
    assert "manager" not in vars(session)


# --- the table of commands -------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_its_line_is_the_first_of_its_docstring(name: str) -> None:
    command = COMMANDS[name].load()
    assert command.name == name
    assert (command.help or "").split("\n\n")[0] == COMMANDS[name].help


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for name in COMMANDS:
        assert f"\n  {name} " in shown.out
    assert main(["list", flag]) == 0
    assert "Usage: robustdd list" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"robustdd {full_version()}\n"
    assert full_version().split()[0] == __version__


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code = main([])
    shown = capsys.readouterr()
    assert "Commands:" in shown.out + shown.err
    assert code in (0, 2)  # click before and since 8.2


# --- wrong calls -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["lst"], "error: unknown command 'lst'; did you mean 'list'?"),
        (["show", "atack", "pgd"], "error: unknown command 'atack'; did you mean 'attack'?"),
        (["list", "--jsn"], "error: unknown option --jsn; did you mean --json?"),
        (["list", "--xyzzy"], "error: unknown option --xyzzy; see robustdd list --help"),
        (["--vresion"], "error: unknown option --vresion; did you mean --version?"),
        (["list", "metods"], "error: unknown kind 'metods'; did you mean 'methods'?"),
        (["show", "track"], "error: missing argument 'NAME'; see robustdd show track --help"),
        (["show", "track", "digit-ipc10"], "did you mean 'digits-ipc10'?"),
        (["show", "attack", "a\x1b[31m\nb"], "error: unknown attack 'a"),
    ],
)
def test_a_wrong_call_is_one_line_on_stderr_with_a_suggestion_and_exit_code_2(
    args: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert "\x1b" not in shown.err
    assert line in shown.err


# --- errors of commands ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("no such folder"), 2, "error: no such folder\n"),
        (RunFailedError("it\n diverged"), 1, "error: it diverged\n"),
        (PluginError("plugin 'x': broke"), 1, "error: plugin 'x': broke\n"),
        (click.ClickException("not like this"), 1, "error: not like this\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("interrupted; go on"), 130, "interrupted; go on\n"),
        (click.Abort(), 130, "interrupted\n"),
    ],
)
def test_each_end_is_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    call: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(error) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", line)


def test_an_unexpected_error_is_one_line_that_says_how_to_see_the_trace(
    call: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(ZeroDivisionError("division by zero")) == 1
    shown = capsys.readouterr().err
    hint = "(set ROBUSTDD_DEBUG=1 for the trace)"
    assert shown == f"error: ZeroDivisionError: division by zero {hint}\n"


def test_the_debug_variable_shows_the_trace(
    call: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROBUSTDD_DEBUG", "1")
    assert call(ZeroDivisionError("division by zero")) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "in callback" in shown
    assert shown.endswith("error: ZeroDivisionError: division by zero\n")


def test_a_command_may_end_with_an_exit_code_of_its_own(
    call: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(click.exceptions.Exit(1)) == 1
    assert capsys.readouterr().err == ""


def test_a_reader_that_went_away_ends_the_command_in_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = robustdd("list", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 141


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_stdout_that_the_shell_closed_is_no_error(closed: str) -> None:
    command = f"{shlex.quote(sys.executable)} -m robustdd_bench list {closed}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this platform")
def test_a_full_disk_under_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        result = robustdd("list", stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr.startswith("error: OSError: ")
    assert result.stderr.count("\n") == 1


def test_a_locale_without_the_character_is_no_error(tmp_path: Path) -> None:
    strangers.install(tmp_path, "greek", strangers.method("greek", summary="π"))
    env = {"PYTHONIOENCODING": "ascii"}
    result = robustdd("list", "methods", path=tmp_path, env=env, capture_output=True)
    assert result.returncode == 0
    assert "\\u03c0" in result.stdout


# --- plugins ---------------------------------------------------------------------------------


def test_a_plugin_adds_a_command_through_its_hook_robustdd_register_commands(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("greeter", strangers.command("greet", "print('hello')", "Say hello."))
    assert main(["greet"]) == 0
    assert capsys.readouterr().out == "hello\n"
    assert main(["--help"]) == 0
    assert "greet         Say hello." in capsys.readouterr().out
    assert main(["gret"]) == 2
    assert "did you mean 'greet'?" in capsys.readouterr().err


def test_a_plugin_whose_commands_fail_is_named_in_one_warning_and_the_rest_works(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = strangers.command("half").rstrip() + "\n    raise KeyError('oops')\n"
    install("broken", broken)
    install("greeter", strangers.command("greet", "print('hello')"))
    assert main(["greet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "hello\n"
    assert shown.err == ("warning: plugin 'broken': its commands are left out: KeyError: 'oops'\n")
    assert main(["half"]) == 2, "what a failing hook added before is left out too"
    assert "unknown command 'half'" in capsys.readouterr().err


def test_a_plugin_that_does_not_import_is_named_in_one_warning(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("absent", "import no_such_module_xyz\n")
    install("quitter", "raise SystemExit(3)\n")
    assert main(["list", "tracks"]) == 0
    shown = capsys.readouterr()
    assert "digits-ipc10" in shown.out
    lines = sorted(shown.err.splitlines())
    assert len(lines) == 2
    assert lines[0].startswith("warning: plugin 'absent' (robustdd-absent) is left out: ")
    assert lines[1].startswith("warning: plugin 'quitter' (robustdd-quitter) is left out: ")


def test_two_plugins_that_claim_one_command_are_an_error_that_names_both(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("one", strangers.command("greet"))
    install("two", strangers.command("greet"))
    assert main(["greet"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "'one'" in errors[0]
    assert "'two'" in errors[0]
    assert main(["--help"]) == 0, "the other commands still work"


def test_a_plugin_cannot_replace_a_built_in_command(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("thief", strangers.command("list", "print('stolen')"))
    assert main(["list", "networks"]) == 0
    assert "stolen" not in capsys.readouterr().out
    assert main(["--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("\n  list ") == 1
    assert "command 'list' is built in" in shown.err


def test_an_unexpected_error_in_the_code_of_a_plugin_names_the_plugin(
    install: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install("faulty", strangers.command("greet", "raise ZeroDivisionError('oops')"))
    assert main(["greet"]) == 1
    assert capsys.readouterr().err == (
        "error: plugin 'faulty': ZeroDivisionError: oops (set ROBUSTDD_DEBUG=1 for the trace)\n"
    )


def test_a_disabled_plugin_adds_nothing(
    install: Callable[[str, str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("greeter", strangers.command("greet"))
    monkeypatch.setenv("ROBUSTDD_DISABLED_PLUGINS", "greeter")
    assert main(["greet"]) == 2
    assert "unknown command" in capsys.readouterr().err


# --- completion ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("robustdd pl", ["plot", "plugins"]),
        ("robustdd show tr", ["track"]),
        ("robustdd show track digits-ipc10-a", ["digits-ipc10-at"]),
        ("robustdd show attack pg", ["pgd", "pgd-targeted"]),
        ("robustdd list net", ["networks"]),
        ("robustdd list --js", ["--json"]),
    ],
)
def test_commands_names_and_options_are_completed(
    words: str,
    expected: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("_ROBUSTDD_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert main([]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1::3] == expected  # zsh: kind, value, help
    assert shown.err == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_completion_scripts_of_the_documentation_exist(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parent.parent / "docs" / "completion.md").read_text()
    assert f"_ROBUSTDD_COMPLETE={shell}_source robustdd" in text
    monkeypatch.setenv("_ROBUSTDD_COMPLETE", f"{shell}_source")
    assert main([]) == 0
    assert f"_ROBUSTDD_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_groups_of_plugins_may_use_the_group_that_suggests() -> None:
    group = Group("tools", commands={"build": click.Command("build")})
    context = click.Context(group, info_name="tools")
    with pytest.raises(UsageError, match="did you mean 'build'"):
        group.resolve_command(context, ["biuld"])
    assert group.resolve_command(context, ["build"])[0] == "build"


def test_python_m_is_the_same_command() -> None:
    result = robustdd("--version", capture_output=True)
    assert result.stdout == f"robustdd {full_version()}\n"
