"""The operations of a run, multiplied from its plan, against those counted while it runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from small_runs import example, plan_of, registry
from tasks import NORMALISE, SMALL, digits_task

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import StudentSpec
from robustdd_bench.runs.operations import (
    SIZES,
    RunFacts,
    UnknownOperationsError,
    _Fortress,
    _size,
    counted_passes,
    operations,
    passes,
    rate,
    run_facts,
    seconds_of_cells,
    student_operations,
)
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.sweeps.estimate import History, estimate
from robustdd_bench.sweeps.plan import plan_sweep
from robustdd_bench.toolkit.operations import (
    Facts,
    MakingOperations,
    count_operations,
    network_costs,
)
from robustdd_bench.toolkit.trajectories import operations as trajectories
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe, family_seeds, train_expert

NEAR = 0.03
"""What else multiplies: last linear layers, norms, distances."""
WIDTH = 8


def costs(depth=2, width=WIDTH, shape=(1, 8, 8), classes=10):
    build = registry().get("networks", "convnet").load()
    return network_costs(build, {"depth": depth, "width": width}, shape, classes, twice=True)


def facts(task) -> Facts:
    """The facts of a task of the digits."""
    plain = costs(classes=task.num_classes)
    return Facts(
        classes=task.num_classes, ipc=task.ipc, images=task.num_classes * task.ipc, pixels=64,
        train=len(task.images), threat=task.threat, augmentation=task.augmentation, input=plain,
        network=plain,
    )  # fmt: skip


def method(name, **config):
    kind = registry().get("distillers", name).load()
    return kind(kind.Config(**config))


def test_convnet_of_the_field_takes_102_million_operations_forward():
    found = costs(3, 128, (3, 32, 32))
    assert found.forward == pytest.approx(102e6, rel=0.01)
    assert 2.8 < found.weights / found.forward < 3
    assert found.pixels / found.forward == pytest.approx(2)
    assert 8.5 < found.products / found.forward < 9


RECIPES = {
    "natural": {},
    "flat": {"flavour": "natural", "gsam_rho": 0.1, "gsam_alpha": 0.3},
    "pgd": {"eps": 0.1, "attack_steps": 3, "attack_step_size": 0.03},
    "fast": {"eps": 0.01},
    "trades": {"eps": 0.1, "attack_steps": 2, "attack_step_size": 0.03},
    "mart": {"eps": 0.1, "attack_steps": 2, "attack_step_size": 0.03},
}


@pytest.mark.parametrize("flavour", RECIPES)
@pytest.mark.parametrize("preprocessing", [NORMALISE, Preprocessing("zca")], ids=lambda p: p.kind)
def test_experts(tmp_path, flavour, preprocessing, monkeypatch):
    task = digits_task(tmp_path, width=WIDTH, preprocessing=preprocessing)
    monkeypatch.setattr(trajectories, "GUARD", 10 * len(task.images))  # all it has
    changes = {"flavour": flavour} | RECIPES[flavour]
    recipe = ExpertRecipe(epochs=2, learning_rate=0.01, batch_size=32, **changes)
    layer = 2 * 64**2 if preprocessing.kind == "zca" else 0
    behind = facts(task).input.behind(layer)
    counted = count_operations(
        lambda: train_expert(task, recipe.canonical(), family_seeds(task.seeds), 0, NullReporter())
    )
    assert trajectories.expert_operations(recipe, len(task.images), behind) == pytest.approx(
        counted, rel=NEAR
    )


QUEUE = {
    "iterations": 3,
    "batch_real": 12,
    "augmentation": "none",
    "fresh_every": 2,
    "networks_max": 4,
    "train_steps": 2,
    "train_batch": 16,
}
CONFIGS = {
    "mtt": SMALL,
    "mat": SMALL | {"joint_weight": 0.5, "joint_batch": 16, "attack_steps": 2, "eps": 0.1},
    "ftd": SMALL,
    "datm": SMALL | {"iterations": 20},
    "tesla": SMALL,
    "tesla, labels": SMALL | {"teacher_labels": True},
    "dm": {"iterations": 2, "batch_real": 12, "augmentation": "none"},
    "idm": QUEUE,
    "rome": QUEUE | {"attack_steps": 2, "mosaic": 1},
    "dc": {"iterations": 2, "outer": 3, "inner": 2, "batch_real": 12},
    "herding": {"epochs": 2},
    "k-means": {"iterations": 1, "restarts": 2},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_distillation(tmp_path, name):
    task = digits_task(tmp_path, width=WIDTH)
    distiller = method(name.partition(",")[0], **CONFIGS[name])
    for part in distiller.parts(task) if hasattr(distiller, "parts") else ():
        part.output.parent.mkdir(parents=True, exist_ok=True)
        distiller.make_part(part, task, NullReporter())
    counted = count_operations(lambda: distiller.distill(task, NullReporter()))
    expected = distiller.operations(facts(task)).distill
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
    plain = costs(classes=task.num_classes)
    images = task.num_classes * 2
    it = RunFacts(plan, (1, 8, 8), 0, MakingOperations(), images, plain)
    assert spec.count * student_operations(it) == pytest.approx(count_operations(train), rel=NEAR)


@pytest.mark.parametrize("name", ["noise", "fgsm", "pgd", "apgd-ce", "square"])
def test_passes_of_an_attack_are_those_of_a_student_that_never_falls(tmp_path, name):
    shape = (1, 8, 8)
    config = '{"queries": 30}' if name == "square" else "{}"
    kind = registry().get("attacks", name).load()
    forwards, gradients = passes(kind, config, shape[0], 4, "Linf")
    queries = {"queries": 30} if name == "square" else {}
    images = digits_task(tmp_path).pixels()[:3]
    fortress = _Fortress(64, 4).eval().requires_grad_(False)
    outcome = attack_student(
        fortress, images, torch.zeros(3, dtype=torch.int64), kind(kind.Config(**queries)),
        ThreatModel("Linf", 0.1), 0, 3, torch.ones(3, dtype=torch.bool),
    )  # fmt: skip
    assert outcome.forwards == 3 * forwards
    assert gradients == {"noise": 0, "fgsm": 1, "pgd": 20, "apgd-ce": 101, "square": 0}[name]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize(
    ("classes", "attacks"),
    [
        *((k, (one,)) for k in (4, 10) for one in ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t")),
        (3, ("apgd-ce", "apgd-dlr", "fab-t")),
        (2, ("apgd-ce", "fab-t")),
        *(
            pytest.param(k, attacks, marks=pytest.mark.long)
            for k, attacks in ((5, ("square",)), (10, ()), (3, ()), (2, ()))
        ),
    ],
)
def test_passes_that_an_attack_states_are_those_it_takes(classes, attacks, norm):
    kind = registry().get("attacks", "autoattack").load()
    attack = kind(kind.Config(attacks=attacks))
    assert list(attack.passes(classes)) == counted_passes(attack, 1, classes, norm)


def test_passes_that_are_not_stated_are_counted():
    kind = registry().get("attacks", "autoattack").load()
    attack = kind(kind.Config(attacks=("fab",)))
    assert attack.passes(10) is None
    assert passes(kind, '{"attacks": ["fab"]}', 1, 10, "Linf") == counted_passes(
        attack, 1, 10, "Linf"
    )
    states = [name for name, entry in registry().entries["attacks"].items() if stated(entry.load())]
    assert states == ["autoattack"], "test the passes of others above"


def stated(kind):
    return kind.passes is not Attack.passes


def test_autoattack_costs_the_same_from_ten_classes_on():
    kind = registry().get("attacks", "autoattack").load()
    config = '{"attacks": ["apgd-t"]}'
    few, ten, more = (passes(kind, config, 1, classes, "Linf") for classes in (5, 10, 13))
    assert kind.counted_classes == 10
    assert ten == more
    assert few[0] < ten[0]


def test_stages_of_a_plan_and_the_cells_of_each():
    plan = plan_of("mtt", track="digits-ipc1", preset="quick")
    bound, likely = operations(plan, registry(), 1, 1), operations(plan, registry())
    assert {stage: bound[stage] for stage in ("experts", "distill", "students")} == {
        stage: likely[stage] for stage in ("experts", "distill", "students")
    }
    assert 0.25 * bound["attacks"] <= likely["attacks"] <= 0.5 * bound["attacks"]
    cells = seconds_of_cells(plan, registry())
    speed = rate(plan, registry())
    count = plan.track.students.count
    assert cells["experts", None] * plan.config["experts"] * speed == pytest.approx(
        likely["experts"]
    )
    assert count * cells["students", None] * speed == pytest.approx(likely["students"])
    each = [seconds for (stage, _), seconds in cells.items() if stage == "attacks"]
    assert count * sum(each) * speed == pytest.approx(likely["attacks"])


def test_the_validation_split_and_slices_are_smaller():
    def students(**options):
        return operations(plan_of("random", **options), registry())["students"]

    assert students(track="cifar10-ipc1", validate=True) < students(track="cifar10-ipc1")
    slice_ = Path(__file__).parents[1] / "examples" / "tracks" / "cifar10-slice.toml"
    plan = plan_of("random", track=str(slice_))
    options = plan.track.data.options
    assert _size(plan)[2:] == (10 * options["train_per_class"], 10 * options["test_per_class"])
    assert _size(plan_of("random"))[2:] == (1707, 90), "digits, with the track's own test fraction"


def test_what_cannot_be_told_is_no_estimate(monkeypatch, tmp_path):
    assert seconds_of_cells(plan_of("gambler"), registry()) == {}
    with pytest.raises(UnknownOperationsError, match="'gambler' does not tell its operations"):
        operations(plan_of("gambler"), registry())
    assert estimate(plan_of("gambler"), History([tmp_path]), tmp_path, registry()) is None
    monkeypatch.delitem(SIZES, "digits")
    with pytest.raises(UnknownOperationsError, match="the size of dataset 'digits'"):
        operations(plan_of("random"), registry())


def test_a_run_of_cifar_has_an_estimate_without_data_or_record(tmp_path):
    plan = plan_of("mat", track="cifar10-small-ipc1")
    found = estimate(plan, History([tmp_path]), tmp_path, registry())
    count = sum(operations(plan, registry()).values())
    assert found.operations == count
    assert found.wall_s == pytest.approx(count / rate(plan, registry()))
    assert str(found) == f"{count:.1e} operations"
    assert (found.records, found.differs) == (0, ())


def test_an_estimate_from_operations_is_near_what_a_run_takes(tmp_path):
    """Within a factor of eight: tiny networks sustain other rates in other steps."""
    plan = plan_of("mtt")
    stages = {s.stage: s.wall_s for s in example("mtt").record.costs.stages}
    took = sum(stages[stage] for stage in ("experts", "distill", "students", "attacks"))
    found = estimate(plan, History([tmp_path]), tmp_path, registry())
    assert took / 8 < found.wall_s < 8 * took


BOARDS = Path(__file__).parents[1] / "benchmarks" / "gpu"
SWEEP = BOARDS / "minutes.toml"


def before_attacks(plan):
    it = run_facts(plan, registry())
    students = plan.track.students.count * student_operations(it)
    return it.making.experts + it.making.distill + students


def test_minutes_leaves_most_of_ten_minutes_to_the_attacks():
    runs = plan_sweep(SWEEP, registry(), device="cpu").runs
    assert {run.plan.preset for run in runs} == {"minutes"}
    for run in runs:
        # Two and a half minutes at 60 TFLOP/s, for which the preset was made; 19 were measured.
        assert before_attacks(run.plan) < 150 * 60e12


@pytest.mark.slow
def test_minutes_fits_a_call_if_half_the_images_are_right_and_half_of_these_stand():
    runs = plan_sweep(SWEEP, registry(), device="cpu").runs
    assert len(runs) == 4
    for run in runs:
        assert sum(operations(run.plan, registry()).values()) < 540 * 60e12


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
            before, track = before_attacks(run.plan) / 1e15, run.plan.track.name
            zca = run.plan.config.get("preprocessing") == "zca"
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
        found = [operations(run.plan, registry(), *shares)["attacks"] for shares in ((1, 1), ())]
        assert [f"{x / 1e15:.1f}" for x in found] == [said.groups()[place] for place in places]
