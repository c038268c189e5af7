"""The Python entrance: it gives what the commands print, and the page about it runs."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pages import BOARD, committed_runs
from robustdd_attacks.transfer import Transfer
from small_runs import TRACK

import robustdd_bench as rdd
from robustdd_bench import api
from robustdd_bench.attacks import Attack, AttackResult
from robustdd_bench.cli.main import cli
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.entrance import Options
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits
from robustdd_bench.evaluation.students import weights_sha256
from robustdd_bench.runs.execution.limits import TimeLimitError

ROOT = Path(__file__).parent.parent
PLACE = {"track": str(TRACK), "device": "cpu", "quiet": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> rdd.Run:
    return rdd.run("random", out=tmp_path_factory.mktemp("runs"), **PLACE)


def test_the_package_lists_its_functions_and_loads_no_torch() -> None:
    code = (
        "import sys, robustdd_bench as rdd; assert set(rdd.__all__) <= set(dir(rdd));"
        "assert 'torch' not in sys.modules; rdd.run; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = rdd.nothing  # type: ignore[attr-defined]
    for name in rdd.__all__:
        assert getattr(rdd, name).__doc__


def test_every_option_is_one_of_the_command_and_is_explained() -> None:
    known = {option.name for option in cli.get_command(None, "run").params}  # type: ignore[arg-type]
    names = set(Options.__annotations__)
    assert names - {"quiet"} <= known
    tree = ast.parse((ROOT / "robustdd_bench" / "entrance.py").read_text(encoding="utf-8"))
    (options,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Options")
    told = [n for n in options.body[1:] if isinstance(n, ast.Expr)]
    assert len(told) == len(names)


def test_the_examples_of_the_page_run(tmp_path, monkeypatch) -> None:
    (tmp_path / "leaderboard").symlink_to(ROOT / "leaderboard")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 9
    # On a track of a second; the page names one of the board.
    source = "\n".join(blocks).replace('track="digits-ipc1"', f"track={str(TRACK)!r}")
    scope: dict[str, object] = {}
    exec(compile(source, "docs/python.md", "exec"), scope)
    run, own, best = scope["run"], scope["own"], scope["best"]
    assert isinstance(run, rdd.Run)
    assert isinstance(own, rdd.Run)
    assert own.robust == run.robust  # the same set
    assert isinstance(best, rdd.Run)
    assert best.record.method.name == "mat"
    assert len(scope["frame"]) == len(scope["rows"]) > 100  # type: ignore[arg-type]


def test_a_run_is_that_of_the_command(made) -> None:
    out = str(made.folder.parents[2])
    call = ["run", "--method", "random", "--track", str(TRACK), "--device", "cpu", "--out", out]
    done = CliRunner().invoke(cli, [*call, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout) == made.summary() | {"folder": str(made.folder)}
    assert "had ended before" not in done.stdout
    again = rdd.run("random", out=out, **PLACE)
    assert (again.reused, again.record) == (True, made.record)
    assert rdd.load_run(made.folder).record == made.record
    shown = CliRunner().invoke(cli, call, catch_exceptions=False)
    figures = re.findall(r"\d+\.\d ± \d+\.\d", shown.stdout)
    assert figures == re.findall(r"\d+\.\d ± \d+\.\d", str(made))
    assert made._repr_markdown_() == str(made)
    assert repr(made) == f"Run(random on fast@1, seed 0, complete: {str(made.folder)!r})"
    assert repr(made.set()) == "DistilledSet(20 images of (1, 8, 8), hard labels)"


def test_students_and_attacks_are_those_of_the_run_bit_for_bit(made) -> None:
    for index, told in enumerate(made.record.students):
        student = rdd.train_student(made.set(), str(TRACK), index=index, device="cpu")
        assert weights_sha256(student.network) == told.sha256
        result = rdd.attack(student)
        assert torch.equal(result.clean_bits, unpack_bits(told.clean))
        found = {(o.attack, o.threat.eps): o for o in result.outcomes}
        assert len(found) == len(told.attacks) > 3
        for outcome in told.attacks:
            bits = found[outcome.attack, outcome.eps].robust
            assert torch.equal(bits, unpack_bits(outcome.robust))
        assert result.robust[0.1] == made.record.aggregates.robust[1].accuracy.values[index]
    assert made.clean == pytest.approx(np.mean(made.record.aggregates.clean.values))


class Grey(Attack):
    """Everything a little greyer: finds nothing that noise would not."""

    norms = ("Linf",)

    @dataclass(frozen=True)
    class Config:
        """None."""

    def perturb(self, task):
        eps = task.threat.eps
        return AttackResult(images=task.images + (0.5 - task.images).clamp(-eps, eps))


def test_any_network_and_attacks_of_ones_own(made) -> None:
    student = rdd.train_student(made.set(), str(TRACK), device="cpu")
    whole = rdd.attack(student, eps=0.1)
    alone = rdd.attack(student.network, str(TRACK), eps=[0.1], attacks=["fgsm"], device="cpu")
    assert alone.attacks["fgsm"] == whole.attacks["fgsm"]
    assert set(alone.robust) == {0.1}
    grey = rdd.attack(student, eps=(0.05, 0.1), attacks={"grey": Grey(Grey.Config())})
    assert list(grey.attacks) == ["grey"]
    assert grey.clean >= grey.robust[0.05] >= grey.robust[0.1] > whole.robust[0.1]
    assert len(repr(student)) < 300
    assert repr(grey) == f"AttackResults({grey})"
    assert str(grey).startswith(f"accuracy in %: clean {100 * student.clean:.1f}; Linf eps 0.05: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ["fgms"]}, "did you mean 'fgsm'"),
        ({"attacks": "fgsm"}, r"must be a list of names, such as \['fgsm'\]"),
        ({"eps": 0}, "eps must be positive and finite"),
        ({"eps": []}, "eps must be positive and finite"),
        ({"eps": float("nan")}, "eps must be positive and finite"),
        ({"eps": [0.1, "0.2"]}, r"not \[0.1, '0.2'\]"),
        ({"eps": "0.1"}, "not '0.1'"),
    ],
)
def test_a_wrong_attack_is_told(options, message, made) -> None:
    student = rdd.train_student(made.set(), str(TRACK), device="cpu")
    with pytest.raises(UsageError, match=message):
        rdd.attack(student, **options)


def test_an_attack_of_ones_own_is_not_that_of_the_suite_by_its_name(made) -> None:
    student = rdd.train_student(made.set(), str(TRACK), device="cpu")
    (outcome, _) = rdd.attack(student, attacks={"pgd": Grey(Grey.Config())}).outcomes
    assert outcome.plugin == "test_api"


def test_a_network_in_training_mode_is_told(made) -> None:
    student = rdd.train_student(made.set(), str(TRACK), device="cpu")
    with pytest.raises(UsageError, match=r"call its eval\(\) first"):
        rdd.attack(student.network.train(), str(TRACK), device="cpu")


def test_an_attack_that_transfers_wants_other_networks(made) -> None:
    student = rdd.train_student(made.set(), str(TRACK), device="cpu")
    attacks = {"transfer": Transfer(Transfer.Config(steps=2))}
    with pytest.raises(UsageError, match=r"give sources=\[...\]"):
        rdd.attack(student, attacks=attacks)
    other = rdd.train_student(made.set(), str(TRACK), index=1, device="cpu")
    found = rdd.attack(student, attacks=attacks, sources=[other.network])
    assert all(outcome.forwards > 0 for outcome in found.outcomes)
    assert found.clean >= found.robust[0.1]


def test_a_set_is_evaluated_however_it_is_given(made, tmp_path) -> None:
    given, options = made.set(), {**PLACE, "out": tmp_path}
    run = rdd.evaluate(given, **options)
    assert run.robust == made.robust  # students do not know where a set comes from
    path = made.folder / "distilled.safetensors"
    others = [
        rdd.evaluate(given.images.numpy(), given.labels.numpy(), **options),
        rdd.evaluate(given.images.double(), given.labels.tolist(), **options),
    ]
    for other in others:
        assert other.record.distilled.sha256 == run.record.distilled.sha256
        assert other.robust == run.robust
    assert rdd.evaluate(path, **options).robust == made.robust
    again = rdd.evaluate(made.folder, **options)
    assert (again.record.method.name, again.robust) == ("random", made.robust)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (torch.rand(2, 1, 8, 8), None, {}, "images need labels"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), [0, 1], {}, "divide by 255"),
        ("of cats", [0, 1], {}, "labels go with images"),
        (torch.rand(2, 1, 8, 8), [0, 1], {"thread": 2}, "did you mean 'threads'"),
        (torch.rand(2, 3, 8, 8), [0, 1], {}, "does not fit the track"),
        ([["a"]], [0], {}, "must be tensors or arrays"),
    ],
)
def test_what_is_no_set_is_told(images, labels, options, message, tmp_path) -> None:
    with pytest.raises(UsageError, match=message):
        rdd.evaluate(images, labels, **{**PLACE, "out": tmp_path, **options})


def test_a_set_that_does_not_fit_is_no_set_for_a_student(made) -> None:
    wide = DistilledSet(images=torch.rand(2, 3, 8, 8), labels=torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="does not fit the track"):
        rdd.train_student(wide, str(TRACK), device="cpu")
    with pytest.raises(UsageError, match="index must not be negative"):
        rdd.train_student(made.set(), str(TRACK), index=-1, device="cpu")


def test_published_sets_and_records(monkeypatch) -> None:
    board = ROOT / "leaderboard"
    found = rdd.load_set("digits-ipc10@2", "mat", 1, board=board)
    assert found.images.shape == (100, 1, 8, 8)
    records = rdd.load_records(board)
    (run,) = records.where(track="digits-ipc10", method="mat", seed=1)
    assert run.record.distilled.sha256 == found.sha256()
    assert isinstance(records[:2], rdd.Records)
    rows = records[:3].rows()
    clean = [row for row in rows if row["eps"] == 0]
    assert [row["accuracy"] for row in clean] == [one.clean for one in records[:3]]
    assert sum(row["headline"] for row in rows) == 3
    assert repr(records[:3]) == "Records(3 runs)"
    frame = records.to_pandas()
    assert list(frame.columns) == list(rows[0])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        records.to_pandas()


@pytest.fixture
def board(monkeypatch):
    """The committed board, whose records all tests of a process read once."""
    monkeypatch.setattr(api, "published", {BOARD: committed_runs()}.__getitem__)
    return BOARD


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits-ipc11", "mat"), "did you mean 'digits-ipc1'"),
        (("digits-ipc10", "mate"), "did you mean 'mat'"),
        (("digits-ipc10", "mat", 99), r"no set of seed 99; there are \[0, 1, 2"),
        (("digits-ipc10", "full"), "no set of seed 0"),
    ],
)
def test_a_set_that_is_not_published_is_told(board, arguments, message) -> None:
    with pytest.raises(UsageError, match=message):
        rdd.load_set(*arguments, board=board)


def test_a_board_that_is_not_there_is_told(tmp_path) -> None:
    with pytest.raises(UsageError, match="name the folder that holds results/"):
        rdd.load_records(tmp_path / "nowhere")


def test_a_run_in_a_thread_is_the_run(made, tmp_path) -> None:
    found: list[rdd.Run] = []
    options = {**PLACE, "out": tmp_path}
    thread = threading.Thread(target=lambda: found.append(rdd.run("random", **options)))
    thread.start()
    thread.join()
    assert found[0].record.results_sha256 == made.record.results_sha256


def test_a_limit_of_time_stops_a_run_and_the_same_call_goes_on(made, tmp_path) -> None:
    options = {**PLACE, "out": tmp_path, "jobs": 1}
    with pytest.raises(TimeLimitError, match="the time limit is reached"):
        rdd.run("random", time_limit=0.01, **options)
    assert rdd.run("random", **options).record.results_sha256 == made.record.results_sha256
