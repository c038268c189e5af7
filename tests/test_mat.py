import dataclasses

import pytest
import torch
from robustdd_mat.distiller import MAT
from robustdd_mat.joint import JointOuter
from robustdd_mtt.distiller import MTT
from tasks import SMALL, InterruptedRunError, RecordingReporter, digits_task

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.adversarial import Adversary
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.experts import ExpertStore
from robustdd_bench.toolkit.trajectories.unroll import Step, adjoint_gradients, unrolled_gradients


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


@pytest.mark.parametrize("flavour", ["pgd", "fast", "trades", "mart"])
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


# The joint robust term.


def joint(task, eps=0.1, weight=2.0, batch=10):
    adversary = Adversary(threat=ThreatModel("Linf", eps), steps=3, step_size=eps / 2)
    return JointOuter(task, adversary, weight, batch)


def test_a_joint_weight_of_zero_is_the_matching_loss_alone(tmp_path):
    assert MAT(MAT.Config(joint_weight=0.0)).outer(digits_task(tmp_path)) is None


def test_a_joint_weight_makes_another_set_that_a_kill_does_not_change(tmp_path):
    task = digits_task(tmp_path)
    plain, _ = run(MAT(MAT.Config(**SMALL)), task)
    config = MAT.Config(**SMALL, joint_weight=1.0, joint_batch=16, checkpoint_seconds=0.0)
    made, told = run(MAT(config), dataclasses.replace(task, work_dir=tmp_path / "a"))
    assert not torch.equal(plain.images, made.images)
    # matching loss plus cross-entropy
    assert min(told.values["loss"]) > 0.5
    killed = dataclasses.replace(task, work_dir=tmp_path / "b")
    with pytest.raises(InterruptedRunError):
        MAT(config).distill(killed, RecordingReporter(3))
    assert run(MAT(config), killed)[0].sha256() == made.sha256()


def test_the_joint_batch_is_drawn_anew_in_each_iteration_from_the_seed(tmp_path):
    task = digits_task(tmp_path)
    outer = joint(task)
    one, two = outer.batch(0)[0], outer.batch(1)[0]
    assert one.shape == (10, 1, 8, 8)
    assert not torch.equal(one, two)
    assert torch.equal(one, joint(task).batch(0)[0])
    assert not torch.equal(one, joint(digits_task(tmp_path, seed=1)).batch(0)[0])
    assert len(joint(task, batch=10_000).batch(0)[0]) == len(task.images)


def test_the_joint_loss_is_matching_plus_cross_entropy_on_attacked_pixels(tmp_path):
    task = digits_task(tmp_path)
    network = FlatNetwork(task.network(0))
    start = network.theta()
    theta, target = start + 0.02, start + 0.1
    value = joint(task, eps=0.0)(0, start, target)(theta)
    x, y = joint(task).batch(0)
    matching = (theta - target).square().sum() / (start - target).square().sum()
    clean = torch.nn.functional.cross_entropy(network(theta, x), y)
    torch.testing.assert_close(value, matching + 2 * clean)
    assert joint(task, eps=0.2)(0, start, target)(theta) > value


@pytest.mark.parametrize("learn_labels", [False, True])
def test_the_engine_is_exact_with_the_joint_term(tmp_path, learn_labels):
    task = digits_task(tmp_path)
    outer = joint(task)
    network = FlatNetwork(task.network(0).double())
    outer._network = network
    task64 = dataclasses.replace(task, images=task.images.double())
    outer._task = task64
    source = torch.Generator().manual_seed(0)
    images = torch.rand(8, 1, 8, 8, generator=source, dtype=torch.float64)
    labels = torch.arange(8) % 4
    if learn_labels:
        labels = torch.nn.functional.one_hot(labels, 4).double() * 0.9 + 0.025
    start = network.theta()
    target = start + 0.05 * torch.randn(start.shape, generator=source, dtype=torch.float64)
    loss = outer(3, start, target)
    alpha = torch.tensor(0.05, dtype=torch.float64)
    arguments = (network, images, labels, alpha, start, loss, [Step()] * 4)
    fast, naive = adjoint_gradients(*arguments), unrolled_gradients(*arguments)
    assert float(fast.loss) == pytest.approx(float(naive.loss), rel=1e-12)
    for name in ("images", "alpha", *(["labels"] if learn_labels else [])):
        a, b = getattr(fast, name), getattr(naive, name)
        assert float((a - b).norm() / b.norm()) < 1e-8


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
        ({"joint_weight": -1.0}, "joint_weight"),
        ({"joint_batch": 0}, "joint_batch"),
    ],
)
def test_values_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        MAT.Config(**bad)
