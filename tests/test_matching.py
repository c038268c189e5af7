import dataclasses
import math

import pytest
import torch
from robustdd_mtt.distiller import MTT
from tasks import SMALL, InterruptedRunError, RecordingReporter, digits_task

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.toolkit.dsa import STRATEGY
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.inputspace import split_network
from robustdd_bench.toolkit.trajectories.experts import ExpertStore, Trajectories
from robustdd_bench.toolkit.trajectories.matching import TrajectoryMatcher


def config(**changes):
    return MTT.Config(**(SMALL | changes))


def prepare(task, settings):
    method = MTT(settings)
    for part in method.parts(task):
        if not part.output.exists():
            method.make_part(part, task, RecordingReporter())
    return method


def distil(task, reporter=None, **changes):
    return prepare(task, config(**changes)).distill(task, reporter or RecordingReporter())


@pytest.fixture
def task(tmp_path):
    return digits_task(tmp_path)


def test_the_plugin_registers_it():
    entry = collect(get_plugin_manager()).get("distillers", "mtt")
    assert entry.plugin == "mtt"
    assert entry.load() is MTT


def test_sets_have_ipc_images_of_each_class_and_a_learning_rate(task):
    made = distil(task)
    made.check((1, 8, 8), 4, 2)
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert made.learning_rate > 0


def test_only_the_epochs_that_matching_can_use_are_trained(task):
    method = prepare(task, config(start_epochs=3, match_epochs=2))
    # the last start is epoch T-1 = 2, its target epoch 4
    assert method.recipe(task).epochs == 4
    epochs = {"asked": []}

    class Spy(Trajectories):
        def at(self, expert, epoch):
            epochs["asked"].append(epoch)
            return super().at(expert, epoch)

    source = torch.Generator().manual_seed(0)
    size = FlatNetwork(task.network(0)).size
    spy = Spy([torch.randn(5, size, generator=source)], task.device)
    settings = config(start_epochs=3, match_epochs=2, iterations=40, alpha_lr=0.0)
    TrajectoryMatcher(settings, task, spy).run(RecordingReporter())
    starts, targets = epochs["asked"][::2], epochs["asked"][1::2]
    assert set(starts) == {0, 1, 2}
    assert targets == [epoch + 2 for epoch in starts]


@pytest.mark.parametrize("change", [{"start_epochs": 3}, {"match_epochs": 2}])
def test_more_epochs_than_are_stored_are_refused_in_one_line(task, change):
    size = FlatNetwork(task.network(0)).size
    stored = Trajectories([torch.randn(3, size), torch.randn(4, size)], task.device)
    TrajectoryMatcher(config(), task, stored)
    with pytest.raises(UsageError, match="need 3 epochs of each expert, and 2 are stored") as told:
        TrajectoryMatcher(config(**change), task, stored)
    assert "\n" not in str(told.value)


def test_an_ipc_larger_than_a_class_is_refused_before_experts_are_trained(tmp_path):
    task = digits_task(tmp_path, ipc=24)
    with pytest.raises(UsageError, match="ipc 24 is larger than class 0, which has 23"):
        MTT(config()).parts(task)
    assert not (tmp_path / "store").exists()


def test_the_seed_decides_and_the_global_generator_is_left_alone(tmp_path):
    before = torch.random.get_rng_state()
    made = [
        distil(digits_task(tmp_path / name, seed=seed)).sha256()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("interrupt_at", [1, 2, 3, 4, 5])
def test_a_killed_run_ends_in_the_set_it_would_have_made(tmp_path, optimiser, interrupt_at):
    changes = {"image_optimiser": optimiser, "student_batch": 3, "alpha_lr": 0.1}
    augmented = dataclasses.replace(digits_task(tmp_path / "whole"), augmentation=STRATEGY)
    whole = distil(augmented, **changes)
    # A task of its own; the experts are shared.
    task = dataclasses.replace(augmented, work_dir=tmp_path / "killed")
    with pytest.raises(InterruptedRunError):
        distil(task, RecordingReporter(interrupt_at), checkpoint_seconds=0, **changes)
    reporter = RecordingReporter()
    resumed = distil(task, reporter, checkpoint_seconds=0, **changes)
    assert reporter.steps == list(range(interrupt_at, 6))
    assert resumed.sha256() == whole.sha256()


def test_the_state_of_another_configuration_is_not_gone_on_from(task):
    distil(task, checkpoint_seconds=0)
    reporter = RecordingReporter()
    distil(task, reporter, checkpoint_seconds=0, image_lr=0.01)
    assert reporter.steps == [1, 2, 3, 4, 5]


def test_iterations_are_drawn_anew(task):
    matcher = matching(task, config(student_batch=3))
    images, _ = matcher.initial_images()
    drawn = [matcher._steps(i, images)[:2] for i in range(30)]
    assert {expert for expert, _ in drawn} == {0, 1}
    assert {epoch for _, epoch in drawn} == {0, 1}
    again = [matcher._steps(i, images)[:2] for i in range(30)]
    assert drawn == again


def matching(task, settings):
    method = prepare(task, settings)
    size = FlatNetwork(task.network(0)).size
    random = torch.Generator().manual_seed(0)
    experts = [torch.randn(3, size, generator=random) for _ in range(2)]
    return TrajectoryMatcher(method.config, task, Trajectories(experts, task.device))


def test_batches_go_through_the_whole_set_before_an_image_comes_again(task):
    matcher = matching(task, config(student_batch=3, student_steps=7))
    images, _ = matcher.initial_images()
    _, _, steps = matcher._steps(0, images)
    assert [len(step.index) for step in steps] == [3, 3, 2, 3, 3, 2, 3]
    for chunk in (steps[:3], steps[3:6]):
        assert sorted(torch.cat([s.index for s in chunk]).tolist()) == list(range(8))
    assert steps[0].index.tolist() != steps[3].index.tolist()


@pytest.mark.parametrize("batch", [0, 8, 100])
def test_a_batch_as_large_as_the_set_is_the_set_in_order(task, batch):
    matcher = matching(task, config(student_batch=batch))
    images, _ = matcher.initial_images()
    assert all(step.index is None for step in matcher._steps(0, images)[2])


def test_the_result_is_a_hand_written_step_on_the_images_in_the_networks_input_space(task):
    """One iteration against plain autograd on a module's weights."""
    made = distil(task, iterations=1, image_optimiser="sgd", image_lr=3.0, alpha_lr=0.0)
    method = prepare(task, config())
    matcher = TrajectoryMatcher(config(), task, Trajectories([torch.zeros(3, 1)] * 2, task.device))
    expert, epoch, _ = matcher._steps(0, matcher.initial_images()[0])
    stored = ExpertStore(task, method.recipe(task)).load(2)
    start, target = stored.at(expert, epoch), stored.at(expert, epoch + 1)
    layer, _ = split_network(task.network(0))
    images, labels = matcher.initial_images()
    z = images.clone().requires_grad_()
    network, theta = (
        FlatNetwork(torch.nn.Sequential(torch.nn.Identity(), matcher.network.body)),
        (start.clone().requires_grad_()),
    )
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(network(theta, z), labels)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - 0.05 * gradient
    value = (theta - target).square().sum() / (start - target).square().sum()
    (gradient,) = torch.autograd.grad(value, z)
    expected = (images - 3.0 * gradient) * layer.std + layer.mean
    torch.testing.assert_close(made.images, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha_lr", [1e3, 1e30])
def test_alpha_stays_positive_whatever_its_learning_rate(task, alpha_lr):
    reporter = RecordingReporter()
    made = distil(task, reporter, alpha_lr=alpha_lr, iterations=8)
    assert all(1e-6 * 0.999 <= alpha <= 1 for alpha in reporter.values["alpha"])
    assert 0 < made.learning_rate <= 1


def test_alpha_stays_where_it_is_without_a_learning_rate(task):
    made = distil(task, alpha_lr=0.0)
    assert made.learning_rate == pytest.approx(0.05, rel=1e-6)


def test_a_run_that_diverges_says_when(task):
    with pytest.raises(RunFailedError, match="held NaN or infinity at iteration 5"):
        distil(task, image_optimiser="sgd", image_lr=1e38)


def test_nan_in_the_training_images_is_no_set(task):
    matcher = matching(task, config())
    images = task.images.clone()
    images[:, 0, 3, 3] = math.nan
    broken = dataclasses.replace(task, images=images)
    with pytest.raises(RunFailedError, match="held NaN or infinity"):
        TrajectoryMatcher(config(), broken, matcher.trajectories).run(RecordingReporter())


def test_the_loss_falls(tmp_path):
    task, reporter = digits_task(tmp_path, per_class=40), RecordingReporter()
    changes = {"student_steps": 8, "iterations": 60, "alpha_lr": 0.02, "experts": 2}
    distil(task, reporter, **changes)
    losses = reporter.values["loss"]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@pytest.mark.parametrize("init", ["real", "noise"])
def test_without_iterations_the_set_is_what_it_starts_from(task, init):
    made = distil(task, iterations=0, init=init)
    real = {tuple(x.flatten().tolist()) for x in task.images}
    own = [tuple((x.flatten() * 16).round().div(16).tolist()) for x in made.images]
    assert all(x in real for x in own) is (init == "real")


@pytest.mark.parametrize("keep", [2, 4])
def test_kept_graphs_change_nothing_but_rounding(tmp_path, keep):
    changes = {"image_optimiser": "sgd", "image_lr": 1.0}
    plain = distil(digits_task(tmp_path / "a"), **changes).images
    kept = distil(digits_task(tmp_path / "b"), keep_graphs=keep, **changes).images
    torch.testing.assert_close(kept, plain, rtol=1e-4, atol=1e-5)


def test_soft_labels_are_learned_beside_the_images(tmp_path):
    task = digits_task(tmp_path)
    hard = distil(task)
    reporter = RecordingReporter()
    made = distil(task, reporter, learn_labels=True, label_lr=0.2)
    made.check((1, 8, 8), 4, 2)
    assert made.soft_labels
    assert made.labels.argmax(1).tolist() == hard.labels.tolist()
    start = torch.full((8, 4), 0.1 / 3)
    start[torch.arange(8), hard.labels] = 0.9
    assert (made.labels - start).abs().max() > 1e-3
    assert not torch.equal(made.images, hard.images)


def test_a_killed_run_with_learned_labels_ends_in_the_set_it_would_have_made(tmp_path):
    changes = {"learn_labels": True, "alpha_space": "linear", "alpha_optimiser": "sgd"}
    task = digits_task(tmp_path / "whole")
    whole = distil(task, **changes)
    killed = dataclasses.replace(task, work_dir=tmp_path / "killed")
    with pytest.raises(InterruptedRunError):
        distil(killed, RecordingReporter(3), checkpoint_seconds=0, **changes)
    assert distil(killed, checkpoint_seconds=0, **changes).sha256() == whole.sha256()


@pytest.mark.parametrize("kind", ["none", "normalise", "zca"])
def test_the_preprocessing_can_be_the_methods_own_and_the_set_carries_it(tmp_path, kind):
    task = digits_task(tmp_path, preprocessing=Preprocessing())
    usual = distil(task)
    assert usual.preprocessing is None
    made = distil(task, preprocessing=kind)
    made.check((1, 8, 8), 4, 2)
    if kind == "none":
        assert made.sha256() == usual.sha256()
        return
    assert made.preprocessing.kind == kind
    keys = {
        ExpertStore(config(preprocessing=k).task(task), MTT(config()).recipe(task)).key
        for k in ("track", kind)
    }
    assert len(keys) == 2
    if kind == "normalise":
        pixels = task.pixels()
        assert made.preprocessing.mean == pytest.approx([float(pixels.mean())])
        assert made.preprocessing.std == pytest.approx([float(pixels.std(correction=0))])


def test_the_log_says_where_the_default_rate_of_images_meets_images_it_was_not_made_for(tmp_path):
    changes = {"image_optimiser": "sgd", "image_lr": 100.0, "iterations": 0}
    for number, (preprocessing, told) in enumerate((("track", 1), ("zca", 0))):
        reporter = RecordingReporter()
        distil(
            digits_task(tmp_path / str(number)), reporter, preprocessing=preprocessing, **changes
        )
        lines = [note for note in reporter.notes if "image_lr 100 by SGD" in note]
        assert len(lines) == told
        assert all("--preset" in line for line in lines)


def test_images_are_what_the_networks_saw_whatever_the_preprocessing(tmp_path):
    task = digits_task(tmp_path, preprocessing=Preprocessing())
    start = distil(task, iterations=0).images
    for kind in ("normalise", "zca"):
        made = distil(task, iterations=0, preprocessing=kind)
        torch.testing.assert_close(made.images, start, rtol=1e-4, atol=1e-4)


def test_a_caller_that_cannot_build_other_networks_says_so(tmp_path):
    task = dataclasses.replace(digits_task(tmp_path), network_with=None)
    assert distil(task, preprocessing="normalise").preprocessing is None
    with pytest.raises(UsageError, match="networks behind 'zca' preprocessing cannot be built"):
        MTT(config(preprocessing="zca")).parts(task)


@pytest.mark.parametrize(
    "bad",
    [
        {"experts": 0},
        {"student_steps": 0},
        {"match_epochs": 0},
        {"start_epochs": 0},
        {"expert_lr": 0.0},
        {"image_lr": -1.0},
        {"alpha_init": 2.0},
        {"alpha_lr": -0.1},
        {"image_momentum": 1.0},
        {"image_optimiser": "lbfgs"},
        {"init": "zeros"},
        {"iterations": -1},
        {"keep_graphs": -1},
        {"label_lr": -1.0},
        {"label_confidence": 1.0},
        {"alpha_space": "square"},
        {"alpha_optimiser": "lbfgs"},
        {"alpha_momentum": 1.0},
        {"preprocessing": "whiten"},
    ],
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        config(**bad)
