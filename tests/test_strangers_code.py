"""Plugins that misbehave, each kind of them, from the command line to the record.

A plugin of each kind does its work and leaves everything changed, or ends with an exit. What others
are told must be what it is without the plugin.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import pytest
import small_methods
import strangers
import torch
from small_methods import Bad
from small_runs import example, plan_of, registry, without_costs
from small_runs import run as small_run

from robustdd_bench import guard
from robustdd_bench.cli.main import main
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import PluginError, RunFailedError
from robustdd_bench.executors import Cell, Executor, Job, Receipt
from robustdd_bench.guard.libraries import GROUPS
from robustdd_bench.guard.settings import SavedSettings
from robustdd_bench.runs.context import RunContext

TINY = """
name = "tiny"
version = 1
summary = "a run of a second"
[data]
dataset = "{dataset}"
ipc = 1
flip = false
[network]
name = "{network}"
options = {{ depth = 1, width = 4 }}
[preprocessing]
kind = "normalise"
mean = [0.3]
std = [0.3]
[students]
count = 1
epochs = 20
[threat]
ladder = [0.1]
headline = 0.1
[[attacks]]
name = "fgsm"
{attack}
"""

MESS = """
def act():
    import os, sys, random, locale, warnings
    print("talk")
    os.write(1, b"more talk\\n")
    os.chdir("/")
    os.environ["STRANGE"] = "1"
    os.umask(0o077)
    random.seed(0)
    warnings.simplefilter("ignore")
    sys.path.insert(0, "/nowhere")
    import torch, numpy, matplotlib
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    numpy.seterr(all="raise")
    numpy.random.seed(0)
    matplotlib.rcParams["font.size"] = 40
"""
CRASH = 'def act():\n    raise RuntimeError("boom\\nand more")\n'
EXIT = "def act():\n    import sys\n    sys.exit()\n"
NOTHING = "def act():\n    pass\n"

PLUGIN = """
{acts}
@hookimpl
def robustdd_register_distillers(register):
    at("register", "distillers")
    register("odd", "stranger_odd_parts:Method", "x")

@hookimpl
def robustdd_register_attacks(register):
    register("odd-attack", "stranger_odd_parts:Odd", "x")

@hookimpl
def robustdd_register_datasets(register):
    register("odd-data", "stranger_odd_parts:load", "x")

@hookimpl
def robustdd_register_networks(register):
    register("odd-net", "stranger_odd_parts:build", "x")
    register("odd-forward", "stranger_odd_parts:build_forward", "x")

@hookimpl
def robustdd_register_tracks(register):
    register("odd-track", "stranger_odd_track:odd.toml", "x")

@hookimpl
def robustdd_register_executors(register):
    register("odd-exec", "stranger_odd_parts:Runner", "x")

@hookimpl
def robustdd_report(event):
    at("report")

@hookimpl
def robustdd_remark():
    at("remark")
    return "fine"

@hookimpl
def robustdd_register_commands(cli):
    at("commands")

    @cli.command("odd-command")
    def odd_command():
        "Stranger."
        at("command")
        print("of the command")

at("top")
"""

HELPLESS = """
@hookimpl
def robustdd_register_commands(cli):
    class Helpless(click.Command):
        def get_short_help_str(self, limit=45):
            raise RuntimeError("boom")

    cli.add_command(Helpless("odd-command", callback=lambda: None))
"""

DECLARES = """
from robustdd_bench.attacks import Attack, AttackResult
from robustdd_bench.config import settings


class Crashing:
    def __get__(self, owner, kind):
        raise RuntimeError("boom")


class Odd(Attack):
    uses_sources = Crashing()

    @settings
    class Config:
        pass

    def perturb(self, task):
        return AttackResult(images=task.images)


@hookimpl
def robustdd_register_attacks(register):
    register("declares", "stranger_declares:Odd", "x")
"""

PARTS = """
from concurrent.futures import Future
from dataclasses import dataclass
from stranger_odd import at
at("import")
import torch
from robustdd_bench.attacks import Attack, AttackResult
from robustdd_bench.distillers import DistilledSet, Distiller
from robustdd_bench.protocol.datasets import load_digits
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.executors import Executor

class Method(Distiller):
    @dataclass(frozen=True)
    class Config:
        a: float = 0.5
        def __post_init__(self):
            at("config")
    def __init__(self, config):
        at("init")
        super().__init__(config)
    def distill(self, task, reporter):
        images, labels = task.real_images(task.required_ipc(), task.seeds.generator("pick"))
        at("distill")
        return DistilledSet(images=images, labels=labels)

class Odd(Attack):
    @dataclass(frozen=True)
    class Config:
        a: float = 0.5
        def __post_init__(self):
            at("attack config")
    def perturb(self, task):
        at("perturb")
        return AttackResult(images=task.images)

def load(root, download, **options):
    found = load_digits(root, download)
    at("load")
    return found

def build(shape, classes, **options):
    network = convnet(shape, classes, **options)
    at("build")
    return network

class Forward(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, x):
        found = self.inner(x)
        at("forward")
        return found

def build_forward(shape, classes, **options):
    return Forward(convnet(shape, classes, **options))

class Runner(Executor):
    def submit(self, cell, job):
        done = Future()
        try:
            done.set_result(job.run_here(cell))
        except Exception as error:
            done.set_exception(error)
        at("executor")
        return done
"""

# Where the plugin acts -> what of it has to be chosen, for `run`.
PLACES: dict[str, dict[str, str]] = {
    "top": {},
    "register": {},
    "report": {},
    "import": {"method": "odd"},
    "config": {"method": "odd"},
    "init": {"method": "odd"},
    "distill": {"method": "odd"},
    "attack config": {"attack": "odd-attack"},
    "perturb": {"attack": "odd-attack"},
    "load": {"dataset": "odd-data"},
    "build": {"network": "odd-net"},
    "forward": {"network": "odd-forward"},
    "executor": {"executor": "odd-exec"},
    "track": {"track": "odd-track"},
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Install a plugin that acts at one place; the folder to work in, which is the current one."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(guard, "_faults", defaultdict(dict))  # of the tests before

    def install(place: str, act: str) -> Path:
        folder = tmp_path / "site"
        acts = f"{act}\ndef at(*places):\n    if {place!r} in places:\n        act()\n"
        strangers.install(folder, "odd", PLUGIN.replace("{acts}", acts))
        (folder / "stranger_odd_parts.py").write_text(PARTS)
        package = folder / "stranger_odd_track"
        package.mkdir()
        (package / "__init__.py").write_text("from stranger_odd import at\nat('track')\n")
        text = TINY.format(dataset="digits", network="convnet", attack="")
        (package / "odd.toml").write_text(text.replace('"tiny"', '"odd-track"'))
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        return work

    yield install
    for name in [name for name in sys.modules if name.startswith("stranger_odd")]:
        del sys.modules[name]


def arguments(choice: dict[str, str]) -> list[str]:
    """Of `robustdd run` with what a place needs; the track is written to tiny.toml."""
    attack = f'[[attacks]]\nname = "{choice["attack"]}"' if "attack" in choice else ""
    Path("tiny.toml").write_text(
        TINY.format(
            dataset=choice.get("dataset", "digits"),
            network=choice.get("network", "convnet"),
            attack=attack,
        )
    )
    return [
        *("--track", choice.get("track", "tiny.toml"), "--device", "cpu", "--out", "runs"),
        *("--executor", choice.get("executor", "local")),
    ]


def record(method: str, track: str = "tiny") -> dict[str, Any]:
    (path,) = Path("runs").glob(f"{track}/{method}/*/record.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def left(before: SavedSettings) -> list[str]:
    """What is not as it was; libraries that are loaded first draw from global generators."""
    return [change.text() for change in before.restore() if change.named]


def results(found: dict[str, Any]) -> Any:
    return found["students"], found["distilled"]


@pytest.mark.parametrize("place", PLACES)
def test_what_a_plugin_leaves_changed_changes_nobodys_figures(
    place: str, site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    choice = PLACES[place]
    method, track = choice.get("method", "random"), choice.get("track", "tiny")
    # Without gradients no network can be trained, and that would be the network's own failure.
    mess = MESS.replace("    torch.set_grad_enabled(False)\n", "") if place == "forward" else MESS
    work = site(place, mess)
    before = SavedSettings(GROUPS)
    assert main(["run", "--method", method, *arguments(choice), "--json"]) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["status"] == "complete"
    assert "talk" in shown.err
    assert "more talk" in shown.err
    said = shown.err + "".join(p.read_text() for p in Path("runs").rglob("run.log"))
    assert "plugin 'odd'" in said
    assert "torch's default dtype (torch.float32 -> torch.float64)" in said
    assert "the working directory" in said
    assert left(before) == []
    assert sorted(p.name for p in work.iterdir()) == ["runs", "tiny.toml"]
    found = record(method, track)
    # The same of a process that the plugin was never in, but for the network's own arithmetic.
    for name in [name for name in sys.modules if name.startswith("stranger_odd")]:
        del sys.modules[name]
    site_again = work.parent / "site" / "stranger_odd.py"
    site_again.write_text(site_again.read_text().replace(mess, NOTHING))
    again = ["run", "--method", method, *arguments(choice), "--fresh", "--json"]
    assert main(again) == 0
    capfd.readouterr()
    if place != "forward":
        assert results(record(method, track)) == results(found)


STOPS = sorted(set(PLACES) - {"top", "register", "report"})


@pytest.mark.parametrize("place", STOPS)
def test_an_exit_in_a_plugin_is_its_failure(
    place: str, site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    choice = PLACES[place]
    site(place, EXIT)
    assert main(["run", "--method", choice.get("method", "random"), *arguments(choice)]) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "SystemExit: it called exit()" in errors[0]
    assert "odd" in errors[0]
    made = list(Path("runs").rglob("record.json"))
    planned = place in {"init", "distill", "perturb", "load", "build", "forward", "executor"}
    assert len(made) == planned, "what fails in the run leaves a record"
    if planned:
        failure = json.loads(made[0].read_text())["failure"]
        assert "SystemExit" in failure["reason"]


@pytest.mark.parametrize("place", STOPS)
def test_a_crash_in_a_plugin_is_one_line_that_names_it(
    place: str, site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    choice = PLACES[place]
    site(place, CRASH)
    assert main(["run", "--method", choice.get("method", "random"), *arguments(choice)]) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    (line,) = [line for line in shown.err.splitlines() if "boom" in line]
    assert line.startswith("error: ")
    assert "plugin 'odd'" in line
    assert "RuntimeError: boom and more" in line


def test_a_crash_in_a_command_is_one_line_that_names_the_plugin(
    site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    site("command", CRASH)
    assert main(["odd-command"]) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    told = "error: plugin 'odd': RuntimeError: boom and more"
    assert line == f"{told} (set ROBUSTDD_DEBUG=1 for the trace)"


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("top", ["list"]),
        ("register", ["list"]),
        ("commands", ["--help"]),
        ("report", None),
        ("remark", ["plugins"]),
    ],
)
def test_a_crash_in_a_hook_is_one_line_that_names_the_plugin_and_stops_nothing(
    place: str,
    call: list[str] | None,
    site: Callable[[str, str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    site(place, CRASH)
    assert main(call or ["run", "--method", "random", *arguments({})]) == 0
    shown = capfd.readouterr()
    assert "Traceback" not in shown.err
    lines = [line for line in (shown.out + shown.err).splitlines() if "boom" in line]
    assert len(lines) == 1
    if place == "remark":
        assert "robustdd_remark failed" in lines[0]
    else:
        assert lines[0].startswith("warning: plugin 'odd'")
        assert lines[0].endswith("RuntimeError: boom and more")


def test_a_crash_in_what_an_attack_declares_is_one_line_that_names_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    strangers.install(tmp_path / "site", "declares", DECLARES)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--method", "random", *arguments({"attack": "declares"})]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "boom" in line]
    assert line == "error: plugin 'declares': attack 'declares' failed: RuntimeError: boom"


def test_a_command_whose_help_crashes_is_left_out_of_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    strangers.install(tmp_path / "site", "helpless", HELPLESS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert main(["--help"]) == 0
    shown = capfd.readouterr()
    assert "cite" in shown.out
    assert "odd-command" not in shown.out
    assert shown.err == (
        "warning: plugin 'helpless': its commands are left out: RuntimeError: boom\n"
    )


@pytest.mark.parametrize("place", ["top", "register"])
def test_a_plugin_that_exits_at_import_is_left_out(
    place: str, site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    site(place, EXIT)
    assert main(["list", "methods", "--json"]) == 0
    shown = capfd.readouterr()
    assert "odd" not in {entry["name"] for entry in json.loads(shown.out)["methods"]}
    assert "warning: plugin 'odd' (robustdd-odd) is left out: " in shown.err
    assert "SystemExit" in shown.err
    assert main(["plugins", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["plugins"]
    assert {row["name"]: row["status"] for row in rows}["odd"] == "broken"


@pytest.mark.parametrize("place", ["report", "commands"])
def test_a_hook_that_exits_stops_nothing(
    place: str, site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    site(place, EXIT)
    assert main(["run", "--method", "random", *arguments({}), "--json"]) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["status"] == "complete"
    if place == "report":
        assert shown.err.count("robustdd_report failed and is left out: SystemExit") == 1
    assert main(["--help"]) == 0
    assert ("odd-command" in capfd.readouterr().out) == (place == "report")


def test_a_remark_that_exits_is_quoted(
    site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    site("remark", EXIT)
    assert main(["plugins", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["plugins"]
    remark = next(row["remark"] for row in rows if row["name"] == "odd")
    assert remark.startswith("robustdd_remark failed: SystemExit")


def test_a_sweep_goes_past_a_method_that_exits_and_its_other_runs_are_what_they_were(
    site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    site("distill", EXIT)
    options = arguments({})[2:]
    Path("alone.toml").write_text('methods = ["random"]\ntracks = "tiny.toml"\n')
    Path("both.toml").write_text('methods = ["odd", "random"]\ntracks = "tiny.toml"\n')
    assert main(["sweep", "alone.toml", *options]) == 0
    alone = record("random")
    assert main(["sweep", "both.toml", *options[:-3], "other", *options[-2:]]) == 1
    capfd.readouterr()
    os.rename("runs", "first")
    os.rename("other", "runs")
    assert record("odd")["status"] == "failed"
    assert record("random")["results_sha256"] == alone["results_sha256"]


def test_a_command_writes_to_stdout_exits_as_it_likes_and_leaves_nothing_changed(
    site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    site("command", MESS)
    before = SavedSettings(GROUPS)
    assert main(["odd-command"]) == 0
    shown = capfd.readouterr()
    assert "of the command" in shown.out
    assert "warning: plugin 'odd': command 'odd-command' left " in shown.err
    assert left(before) == []


@pytest.mark.parametrize(
    ("place", "call"), [("commands", ["--help"]), ("remark", ["plugins", "--json"])]
)
def test_a_hook_that_leaves_all_changed_is_put_back_and_named(
    place: str,
    call: list[str],
    site: Callable[[str, str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    site(place, MESS)
    before = SavedSettings(GROUPS)
    assert main(call) == 0
    shown = capfd.readouterr()
    assert "talk" not in shown.out
    assert "talk" in shown.err
    if place == "commands":
        assert "warning: plugin 'odd': robustdd_register_commands left " in shown.err
    assert left(before) == []


def test_a_command_has_an_exit_code_of_its_own(site: Callable[[str, str], Path]) -> None:
    site("command", EXIT.replace("exit()", "exit(7)"))
    with pytest.raises(SystemExit) as end:
        main(["odd-command"])
    assert end.value.code == 7


@pytest.mark.parametrize(
    ("place", "check", "words"),
    [
        ("top", "import", "its import leaves"),
        ("import", "import", "the import of method 'odd' leaves"),
        ("register", "import", "robustdd_register_distillers leaves"),
        ("distill", "settings", "torch's default dtype"),
    ],
)
def test_check_plugin_fails_what_is_left_changed(
    place: str,
    check: str,
    words: str,
    site: Callable[[str, str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    site(place, MESS)
    assert main(["check-plugin", "odd", "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    failed = {f["check"]: f["detail"] for f in report["findings"] if not f["passed"]}
    assert words in failed[check]


def test_check_plugin_fails_a_method_that_exits(
    site: Callable[[str, str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    site("distill", EXIT)
    assert main(["check-plugin", "odd"]) == 1
    assert "SystemExit: it called exit()" in capfd.readouterr().out


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("distillers", "given", "`robustdd evaluate FILE`"),
        ("distillers", "GIVEN", "`robustdd evaluate FILE`"),
        ("tracks", "store", "the folder that all runs share"),
        ("tracks", "mine.toml", "for a file"),
        ("tracks", "Mine.TOML", "for a file"),
        ("tracks", "record.json", "for the record of a run"),
        ("attacks", "pgd-0", "students 0 to 4"),
        ("networks", "con", "Windows"),
        ("datasets", "Aux.images", "Windows"),
        ("distillers", "mine.", "Windows"),
        ("distillers", "mine\n", "must be made of letters"),
        ("distillers", "../mine", "must be made of letters"),
        ("distillers", "..", "must be made of letters"),
        ("distillers", "x" * 65, "no longer than 64"),
    ],
)
def test_a_name_that_means_something_else_is_refused(
    kind: str, name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code = f"@hookimpl\ndef robustdd_register_{kind}(register):\n    register({name!r}, 'a:b')\n"
    strangers.install(tmp_path / "site", "odd", code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    try:
        assert main(["list", "--json"]) == 0
    finally:
        sys.modules.pop("stranger_odd", None)
    shown = capfd.readouterr()
    listed = json.loads(shown.out)
    assert name not in {entry["name"] for entries in listed.values() for entry in entries}
    assert "warning: plugin 'odd' (robustdd-odd) is left out" in shown.err
    assert words in shown.err


@pytest.mark.parametrize("kind", ["methods", "tracks"])
def test_two_names_that_differ_in_case_alone_are_told(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hook, name = ("distillers", "MAT") if kind == "methods" else ("tracks", "Digits-ipc1")
    code = f"@hookimpl\ndef robustdd_register_{hook}(register):\n    register({name!r}, 'a:b')\n"
    strangers.install(tmp_path / "site", "odd", code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    try:
        assert main(["list", kind]) == 2
    finally:
        sys.modules.pop("stranger_odd", None)
    shown = capfd.readouterr().err
    assert "differ in case alone" in shown
    assert "set ROBUSTDD_DISABLED_PLUGINS=" in shown
    assert "'odd'" in shown


# --- paths and objects ---------------------------------------------------------------------------


class Wandering(Executor):
    """Runs cells from another working directory."""

    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        os.chdir("/")
        done: Future[Receipt] = Future()
        done.set_result(job.run_here(cell))
        return done


def test_files_land_where_the_call_said_wherever_a_plugin_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_of("random")
    finished = small_run(plan, "out", executor=Wandering(), data_root=Path("data"))
    assert finished.folder == plan.folder(Path("out")), "as the caller named it"
    assert Path.cwd() == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (finished.folder / "record.json").is_file()
    assert without_costs(finished.record) == without_costs(example("random").record)


def test_what_a_method_does_to_the_preprocessing_layer_stays_with_the_method() -> None:
    context = RunContext(plan_of("random"), registry(), Path("runs"), Path("data"))
    lent, judged = context.task.network(0), context._students(context.preprocessing)(0)
    lent[0].register_forward_hook(lambda module, inputs, output: 0 * output)
    for buffer in lent[0].buffers():
        buffer.zero_()
    pixels = context.train.pixels()[:4]
    fresh = RunContext(plan_of("random"), registry(), Path("runs"), Path("data"))
    assert torch.equal(judged(pixels), fresh._students(fresh.preprocessing)(0)(pixels))
    assert lent[0] is not judged[0]


class Odd(torch.Tensor):
    """A tensor of a stranger's own kind."""


class OddSet(DistilledSet):
    """A set that finds itself right."""

    def check(self, *_: Any) -> None:
        return


class Strange(Bad):
    """Returns a set of its own kind, whose images are of their own kind if that is asked for."""

    kind: ClassVar[type] = Odd

    def distill(self, task: Any, reporter: Any) -> Any:
        images, labels = task.real_images(task.ipc, task.seeds.generator("pick"))
        return OddSet(images=images.as_subclass(self.kind), labels=labels[:1])


def test_a_set_is_judged_in_our_own_kinds_of_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_methods, "Raising", Strange)
    with pytest.raises(PluginError, match="the images must be a plain tensor, not Odd"):
        small_run(plan_of("raising"), tmp_path / "one")
    monkeypatch.setattr(Strange, "kind", torch.Tensor)
    with pytest.raises(RunFailedError, match="do not go with 1 labels"):
        small_run(plan_of("raising"), tmp_path / "two")
