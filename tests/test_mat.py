import dataclasses

import pytest
import torch
from robustdd_mat.distiller import MAT
from robustdd_mtt.distiller import MTT
from tasks import RecordingReporter, digits_task

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.toolkit.experts import ExpertStore
from robustdd_bench.toolkit.seeds import Seeds

SMALL = {
    "experts": 2,
    "expert_lr": 0.05,
    "expert_batch": 32,
    "student_steps": 4,
    "match_epochs": 1,
    "start_epochs": 2,
    "iterations": 5,
    "image_optimiser": "adam",
    "image_lr": 0.05,
    "alpha_init": 0.05,
}


def run(method, task):
    """Method, set and metrics of a whole distillation."""
    reporter = RecordingReporter()
    for part in method.parts(task):
        if not part.output.exists():
            method.make_part(part, task, reporter)
    reporter = RecordingReporter()
    return method.distill(task, reporter), reporter


def own(task, name, folder):
    """The task as the harness gives it to a method: with the method's name in its seeds."""
    return dataclasses.replace(
        task,
        seeds=Seeds(task.seeds.base, task.seeds.track, name),
        work_dir=folder / name,
        store_dir=folder / name / "store",
    )


def test_the_plugin_registers_it():
    entry = collect(get_plugin_manager()).get("distillers", "mat")
    assert entry.plugin == "mat"
    assert entry.load() is MAT


@pytest.mark.parametrize("flavour", ["pgd", "natural"])
def test_without_adversary_and_average_it_is_mtt_bit_for_bit(tmp_path, flavour):
    task = dataclasses.replace(digits_task(tmp_path), augmentation="color_crop_cutout_rotate")
    mtt, mat = own(task, "mtt", tmp_path), own(task, "mat", tmp_path)
    plain, robust = (
        MTT(MTT.Config(**SMALL)),
        MAT(MAT.Config(**SMALL, flavour=flavour, eps=0.0, ema=0.0)),
    )
    one, told = run(plain, mtt)
    two, told_too = run(robust, mat)
    stores = ExpertStore(mtt, plain.recipe(mtt)), ExpertStore(mat, robust.recipe(mat))
    assert stores[0].key == stores[1].key
    for k in range(2):
        files = [store.parts(2)[k].output.read_bytes() for store in stores]
        assert files[0] == files[1]
    assert one.sha256() == two.sha256()
    assert torch.equal(one.images, two.images)
    assert told.values == told_too.values


def test_an_adversary_or_an_average_makes_other_experts(tmp_path):
    task = digits_task(tmp_path)
    configs = [
        MAT.Config(**SMALL, eps=0.0, ema=0.0),
        MAT.Config(**SMALL, eps=0.1, ema=0.0),
        MAT.Config(**SMALL, eps=0.0, ema=0.9),
    ]
    made = [run(MAT(c), task)[0].sha256() for c in configs]
    assert len(set(made)) == 3


@pytest.mark.parametrize("flavour", ["pgd", "trades", "mart"])
def test_every_flavour_makes_a_set(tmp_path, flavour):
    task = digits_task(tmp_path)
    made, reporter = run(MAT(MAT.Config(**SMALL, flavour=flavour, attack_steps=2)), task)
    made.check((1, 8, 8), 4, 2)
    assert len(reporter.values["loss"]) == 5


def test_the_adversary_is_the_tracks_unless_an_eps_is_named(tmp_path):
    task = dataclasses.replace(digits_task(tmp_path), threat=ThreatModel("L2", 0.5))
    recipe = MAT(MAT.Config()).recipe(task)
    assert (recipe.norm, recipe.eps, recipe.attack_step_size) == ("L2", 0.5, 0.125)
    recipe = MAT(MAT.Config(eps=0.2, attack_step_size=0.5)).recipe(task)
    assert (recipe.eps, recipe.attack_step_size) == (0.2, 0.1)


def test_adversarial_experts_are_more_robust_than_natural_ones(tmp_path):
    from robustdd_bench.toolkit.adversarial import Adversary
    from robustdd_bench.toolkit.flat import FlatNetwork

    task = digits_task(tmp_path, per_class=60, width=16)
    changes = SMALL | {"experts": 1, "expert_batch": 16, "expert_lr": 0.1, "start_epochs": 10}
    correct = {}
    for eps in (0.0, 0.15):
        method = MAT(MAT.Config(**changes, eps=eps, ema=0.0, attack_steps=3, attack_step_size=0.4))
        (part,) = method.parts(task)
        method.make_part(part, task, RecordingReporter())
        theta = ExpertStore(task, method.recipe(task)).load(1).at(0, 10)
        network = FlatNetwork(task.network(0))

        def objective(x, network=network, theta=theta):
            return torch.nn.functional.cross_entropy(network(theta, x), task.labels)

        attack = Adversary(threat=ThreatModel("Linf", 0.15), steps=10, step_size=0.04)
        x = attack.maximise(objective, task.images, torch.Generator().manual_seed(0))
        correct[eps] = float((network(theta, x).argmax(1) == task.labels).float().mean())
    assert correct[0.15] > correct[0.0] + 0.1


def test_an_ipc_larger_than_a_class_is_refused_before_experts_are_trained(tmp_path):
    with pytest.raises(UsageError, match="ipc 24 is larger than class 0"):
        MAT(MAT.Config(**SMALL)).parts(digits_task(tmp_path, ipc=24))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"eps": -0.5}, "eps"),
        ({"attack_steps": 0}, "attack_steps"),
        ({"attack_step_size": 0.0}, "attack_step_size"),
        ({"beta": -1.0}, "beta"),
        ({"ema": 1.0}, "ema"),
        ({"flavour": "strong"}, "flavour"),
        ({"experts": 0}, "experts"),
    ],
)
def test_values_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        MAT.Config(**bad)
