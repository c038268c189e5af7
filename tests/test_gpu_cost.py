"""The operations of a run, multiplied from its plan, against those counted while it runs."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch
from small_runs import plan_of, registry
from tasks import NORMALISE, SMALL, digits_task

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import NetworkSpec, StudentSpec
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.sweeps.plan import plan_sweep
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe, family_seeds, train_expert

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"))
import cost
from bench import count_operations

sys.path.pop(0)

NEAR = 0.03
"""What else multiplies: last linear layers, norms, distances."""
WIDTH = 8
NETWORK = NetworkSpec(options={"depth": 2, "width": WIDTH})


def facts(distiller, task, **changes) -> cost.Facts:
    """The facts of a method on a task of the digits."""
    plain = cost.network_costs(registry(), NETWORK, (1, 8, 8), task.num_classes, twice=True)
    values = {"plan": plan_of(), "input": plain, "network": plain, "student": plain} | changes
    track = values["plan"].track
    track = track.model_copy(update={"data": track.data.model_copy(update={"ipc": task.ipc})})
    values["plan"] = dataclasses.replace(values["plan"], track=track)
    return cost.Facts(
        distiller=distiller, pixels=64, classes=task.num_classes, train=len(task.images),
        test=0, **values,
    )  # fmt: skip


def method(name, **config):
    kind = registry().get("distillers", name).load()
    return kind(kind.Config(**config))


def test_convnet_of_the_field_takes_102_million_operations_forward():
    spec = NetworkSpec(options={"depth": 3, "width": 128})
    found = cost.network_costs(registry(), spec, (3, 32, 32), 10, twice=True)
    assert found.forward == pytest.approx(102e6, rel=0.01)
    assert 2.8 < found.weights / found.forward < 3
    assert found.pixels / found.forward == pytest.approx(2)
    assert 8.5 < found.products / found.forward < 9


RECIPES = {
    "natural": {},
    "pgd": {"eps": 0.1, "attack_steps": 3, "attack_step_size": 0.03},
    "fast": {"eps": 0.01},
    "trades": {"eps": 0.1, "attack_steps": 2, "attack_step_size": 0.03},
    "mart": {"eps": 0.1, "attack_steps": 2, "attack_step_size": 0.03},
}


@pytest.mark.parametrize("flavour", RECIPES)
@pytest.mark.parametrize("preprocessing", [NORMALISE, Preprocessing("zca")], ids=lambda p: p.kind)
def test_experts(tmp_path, flavour, preprocessing, monkeypatch):
    task = digits_task(tmp_path, width=WIDTH, preprocessing=preprocessing)
    monkeypatch.setattr(cost, "_GUARD", 10 * len(task.images))  # all it has
    recipe = ExpertRecipe(
        epochs=2, learning_rate=0.01, batch_size=32, flavour=flavour, **RECIPES[flavour]
    )
    it = facts(None, task)
    layer = 2 * 64**2 if preprocessing.kind == "zca" else 0
    costs = it.input.behind(layer)
    counted = count_operations(
        lambda: train_expert(task, recipe.canonical(), family_seeds(task.seeds), 0, NullReporter())
    )
    assert cost.expert(recipe, len(task.images), costs) == pytest.approx(counted, rel=NEAR)


CONFIGS = {
    "mtt": SMALL,
    "mat": SMALL | {"joint_weight": 0.5, "joint_batch": 16, "attack_steps": 2, "eps": 0.1},
    "dm": {"iterations": 2, "batch_real": 12, "augmentation": "none"},
    "dc": {"iterations": 2, "outer": 3, "inner": 2, "batch_real": 12},
    "herding": {"epochs": 2},
    "k-means": {"iterations": 1, "restarts": 2},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_distillation(tmp_path, name):
    task = digits_task(tmp_path, width=WIDTH)
    distiller = method(name, **CONFIGS[name])
    for part in distiller.parts(task) if name in ("mtt", "mat") else ():
        part.output.parent.mkdir(parents=True, exist_ok=True)
        distiller.make_part(part, task, NullReporter())
    counted = count_operations(lambda: distiller.distill(task, NullReporter()))
    plan = dataclasses.replace(plan_of(), method=name)
    expected = cost.cost(facts(distiller, task, plan=plan))["distill"]
    assert expected == pytest.approx(counted, rel=NEAR if name != "k-means" else 0.2)


@pytest.mark.parametrize("flavour", ["natural", "pgd", "trades"])
def test_students(tmp_path, flavour):
    task = digits_task(tmp_path, width=WIDTH)
    spec = StudentSpec(count=2, epochs=3, batch_size=6, learning_rate=0.01)
    if flavour != "natural":
        adversary = {"flavour": flavour, "eps": 0.1, "steps": 2}
        spec = StudentSpec.model_validate(spec.model_dump() | {"adversarial": adversary})
    images, labels = task.real_images(2, torch.Generator().manual_seed(0))
    distilled = DistilledSet(images=images, labels=labels)

    def train():
        for r in range(spec.count):
            train_student(
                task.network(r), distilled, spec, task.seeds, r, flip=False,
                reporter=NullReporter(),
            )  # fmt: skip

    plan = plan_of()
    plan = dataclasses.replace(plan, track=plan.track.model_copy(update={"students": spec}))
    expected = cost.students(facts(method("random"), task, plan=plan))
    assert expected == pytest.approx(count_operations(train), rel=NEAR)


@pytest.mark.parametrize("name", ["noise", "fgsm", "pgd", "apgd-ce", "square"])
def test_passes_of_an_attack_are_those_of_a_student_that_never_falls(tmp_path, name):
    shape = (1, 8, 8)
    config = '{"queries": 30}' if name == "square" else "{}"
    forwards, gradients = cost.passes(name, config, shape, 4, "Linf")
    kind = registry().get("attacks", name).load()
    queries = {"queries": 30} if name == "square" else {}
    images = digits_task(tmp_path).pixels()[:3]
    fortress = cost._Fortress(64, 4).eval().requires_grad_(False)
    outcome = attack_student(
        fortress, images, torch.zeros(3, dtype=torch.int64), kind(kind.Config(**queries)),
        ThreatModel("Linf", 0.1), 0, 3, torch.ones(3, dtype=torch.bool),
    )  # fmt: skip
    assert outcome.forwards == 3 * forwards
    assert gradients == {"noise": 0, "fgsm": 1, "pgd": 20, "apgd-ce": 101, "square": 0}[name]


def test_a_plan_is_priced_whole_and_a_method_unknown_here_is_told(monkeypatch, capsys):
    words = ["--method", "mtt", "--track", "digits-ipc1", "--preset", "quick", "--rate", "1e-3"]
    cost.main(words)
    head, row = capsys.readouterr().out.splitlines()
    assert head.startswith("seconds at 0.001 TFLOP/s")
    assert row.startswith("mtt on digits-ipc1, seed 0")
    bound = [float(word) for word in row.split()[5:9]]
    cost.main([*words, "--right", ".5", "--standing", ".1"])
    expected = [float(word) for word in capsys.readouterr().out.splitlines()[1].split()[5:9]]
    assert expected[:3] == bound[:3]
    assert 0.1 * bound[3] < expected[3] < 0.5 * bound[3]
    monkeypatch.delitem(cost.METHODS, "random")
    with pytest.raises(SystemExit):
        cost.main(["--method", "random", "--track", "digits-ipc1"])
    assert "method 'random' are not known here" in capsys.readouterr().err


SWEEP = Path(cost.__file__).with_name("minutes.toml")


def test_minutes_leaves_most_of_ten_minutes_to_the_attacks():
    runs = plan_sweep(SWEEP, registry(), device="cpu").runs
    assert {run.plan.preset for run in runs} == {"minutes"}
    for run in runs:
        it = cost.facts(run.plan, registry())
        # Two and a half minutes at 60 TFLOP/s, for which the preset was made; 19 were measured.
        assert sum(cost.before_attacks(it).values()) < 150 * 60e12


@pytest.mark.slow
def test_minutes_fits_a_call_if_half_the_images_are_right_and_half_of_these_stand(capsys):
    words = ["--sweep", str(SWEEP), "--right", ".5", "--standing", ".25", "--rate", "60"]
    cost.main(words)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 4
    assert not any("more than a call" in row for row in rows)


def readme() -> str:
    return SWEEP.with_name("README.md").read_text(encoding="utf-8")


def test_readme_says_what_the_rows_of_the_boards_take():
    lines = [line.strip("| ").split(" | ") for line in readme().splitlines() if "|" in line]
    head = next(line for line in lines if line[0] == "`cifar10-ipc1`")
    tracks = [name.strip("`") for name in head]
    said = {line[0]: dict(zip(tracks, line[1:], strict=False)) for line in lines}
    likely, whitened = (
        float(x) for x in re.search(r"they are (\S+) \((\S+)\) if", readme()).groups()
    )
    count = 0
    for name in ("board", "board-cifar10", "board-cifar100"):
        for run in plan_sweep(SWEEP.with_name(f"{name}.toml"), registry(), device="cpu").runs:
            it, track = cost.facts(run.plan, registry()), run.plan.track.name
            before = sum(cost.before_attacks(it).values()) / 1e15
            zca = it.plan.config.get("preprocessing") == "zca"
            mark = "\\*" if before + (whitened if zca else likely) > 540 * 0.06 else ""
            row = run.plan.method + (" (PGD-AT)" if track.endswith("-at") else "")
            assert said[row][track.removesuffix("-at")] == f"{before:.1f}{mark}", (row, track)
            count += 1
    assert count == 9 * 6 + 1


@pytest.mark.slow
def test_readme_says_what_attacks_take():
    said = re.search(r"at most (\S+) \((\S+) behind ZCA.*they are (\S+) \((\S+)\) if", readme())
    for method, places in (("random", (0, 2)), ("mat", (1, 3))):
        run = next(
            r
            for r in plan_sweep(SWEEP.with_name("board.toml"), registry()).runs
            if r.plan.method == method
        )
        it = cost.facts(run.plan, registry())
        found = cost.attacks(it), cost.attacks(it, 0.5, 0.25)
        assert [f"{x / 1e15:.1f}" for x in found] == [said.groups()[place] for place in places]
