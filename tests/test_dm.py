import dataclasses
from functools import partial

import pytest
import torch
from robustdd_dm.distiller import DM, matching_gradient
from tasks import (
    InterruptedRunError,
    RecordingReporter,
    counting_network,
    digits_task,
    replay_steps,
)
from torch import nn

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.dsa import STRATEGY, Augmentation, apply, apply_grouped
from robustdd_bench.toolkit.inputspace import features, split_network, starting_images


def run(task, reporter=None, **config):
    config = DM.Config(**({"iterations": 6, "batch_real": 10} | config))
    return DM(config).distill(task, reporter or RecordingReporter())


def pixel_network(seed):
    """A network whose features are the pixels."""
    with isolated_rng(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def test_the_plugin_registers_it():
    entry = collect(get_plugin_manager()).get("distillers", "dm")
    assert entry.plugin == "dm"
    config = entry.load().Config()
    assert (config.iterations, config.lr_img, config.momentum) == (20000, 1.0, 0.5)


@pytest.mark.parametrize("kind", ["none", "normalise", "zca"])
@pytest.mark.parametrize("init", ["real", "noise"])
def test_sets_have_ipc_images_of_each_class(kind, init, tmp_path):
    statistics = ((0.3,), (0.38,)) if kind == "normalise" else ((), ())
    task = digits_task(tmp_path, ipc=3, preprocessing=Preprocessing(kind, *statistics))
    made = run(task, init=init)
    made.check((1, 8, 8), 4, 3)
    assert made.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_the_seed_decides_and_the_global_generator_is_left_alone(tmp_path):
    before = torch.random.get_rng_state()
    made = [
        run(digits_task(tmp_path / name, seed=seed)).sha256()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("interrupt_at", [1, 4])
def test_a_killed_run_ends_in_the_set_it_would_have_made(interrupt_at, tmp_path):
    whole = run(digits_task(tmp_path / "whole"))
    task = digits_task(tmp_path / "killed")
    with pytest.raises(InterruptedRunError):
        run(task, RecordingReporter(interrupt_at), checkpoint_seconds=0)
    reporter = RecordingReporter()
    resumed = run(task, reporter, checkpoint_seconds=0)
    assert reporter.steps == list(range(interrupt_at, 7))
    assert resumed.sha256() == whole.sha256()


def test_the_loss_of_hand_computed_features():
    body = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).requires_grad_(False)
    real = torch.tensor([[0.0, 0.0], [2.0, 4.0], [4.0, 2.0], [3.0, 3.0]]).view(4, 1, 1, 2)
    made = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 3.0], [3.0, 3.0]]).view(4, 1, 1, 2)
    loss, gradient = matching_gradient(body, real, [3, 1], made, lambda x, sizes: x)
    # class 0: real mean (2,2), made mean (2,1): 1; class 1: (3,3) against (4,3): 1
    assert loss.item() == 2
    # 2 (made mean - real mean) / S
    assert gradient.view(4, 2).tolist() == [[0, -1], [0, -1], [1, 0], [1, 0]]


def test_steps_with_pixels_as_features_go_to_the_batch_mean_as_computed_by_hand(tmp_path):
    task = dataclasses.replace(digits_task(tmp_path, ipc=1), network=pixel_network)
    made = run(task, iterations=2, lr_img=0.25, batch_real=100, augmentation="none")
    start, _ = task.real_images(1, task.seeds.generator("init"))
    mean = torch.stack([task.pixels(index).mean(0) for index in task.class_indices()])
    velocity = 2 * (start - mean)
    first = start - 0.25 * velocity
    velocity = 0.5 * velocity + 2 * (first - mean)
    torch.testing.assert_close(made.images, first - 0.25 * velocity)


def test_loss_and_gradient_equal_a_loop_over_classes_in_float64():
    with isolated_rng(0):
        body = convnet((2, 8, 8), 3, depth=2, width=4).double().requires_grad_(False)
    source = torch.Generator().manual_seed(1)
    sizes, ipc = [5, 3, 6, 5], 2
    real = torch.randn(sum(sizes), 2, 8, 8, generator=source, dtype=torch.float64)
    z = torch.randn(4 * ipc, 2, 8, 8, generator=source, dtype=torch.float64)
    augmentation = Augmentation.parse(STRATEGY)
    drawn = [augmentation.draw(1, (8, 8), source, siamese=True) for _ in sizes]
    loss, gradient = matching_gradient(body, real, sizes, z, partial(apply_grouped, params=drawn))

    leaf, expected = z.clone().requires_grad_(), 0
    for k, part in enumerate(real.split(sizes)):
        target = sum(features(body, apply(x[None], drawn[k]))[0] for x in part) / len(part)
        own = leaf[k * ipc : (k + 1) * ipc]
        mean = sum(features(body, apply(x[None], drawn[k]))[0] for x in own) / ipc
        expected = expected + ((target - mean) ** 2).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)


def as_the_paper_writes_it(task, config, augmentation):
    """Eq. 4 and a step down it, again and again: images, and the loss per class of each step."""
    seeds, ipc, losses = task.seeds, task.ipc, []
    layer, _ = split_network(task.network(0))
    z = starting_images(task, ipc, layer, config.init)
    velocity = torch.zeros_like(z)
    for iteration in range(config.iterations):
        _, body = split_network(task.network(seeds.seed("network", iteration)))
        source = seeds.generator("real", iteration)
        augment = seeds.generator("augmentation", iteration)
        own, total = z.clone().requires_grad_(), torch.zeros(())
        indices = task.class_indices()
        for first in range(0, task.num_classes, config.classes_at_once):
            some = range(first, min(first + config.classes_at_once, task.num_classes))
            real, made, sizes = [], [], []
            orders = [torch.randperm(len(indices[k]), generator=source) for k in some]
            drawn = [augmentation.draw(1, z.shape[2:], augment, siamese=True) for _ in some]
            for k, order, params in zip(some, orders, drawn, strict=True):
                x = layer(task.pixels(indices[k][order[: config.batch_real]]))
                sizes.append(len(x))
                real.append(apply(x, params))
                made.append(apply(own[k * ipc : (k + 1) * ipc], params))
            with torch.no_grad():
                parts = features(body, torch.cat(real)).split(sizes)
                target = torch.stack([part.mean(0) for part in parts])
            means = features(body, torch.cat(made)).view(len(some), ipc, -1).mean(1)
            total = total + ((target - means) ** 2).sum()
        velocity = config.momentum * velocity + torch.autograd.grad(total, own)[0]
        z = z - config.lr_img * velocity
        losses.append(float(total.detach() / task.num_classes))
    return z, losses


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("strategy", ["none", STRATEGY])
@pytest.mark.parametrize("classes_at_once", [3, 10])
@pytest.mark.parametrize("network", [None, counting_network])
def test_a_run_is_eq_4_bit_for_bit(
    network, classes_at_once, strategy, replayed, tmp_path, monkeypatch
):
    """With a class of fewer images than a real batch, captured steps or none, buffers or none."""
    if replayed:
        replay_steps(monkeypatch)
    task = digits_task(tmp_path, preprocessing=Preprocessing("none"), allow_flip=True, uint8=True)
    if network is not None:
        task = dataclasses.replace(task, network=network)
    options = {"augmentation": strategy, "classes_at_once": classes_at_once}
    config = DM.Config(iterations=8, batch_real=24, **options)
    reporter = RecordingReporter()
    made = DM(config).distill(task, reporter)
    images, losses = as_the_paper_writes_it(task, config, Augmentation.parse(strategy))
    assert torch.equal(made.images, images)
    assert reporter.values["loss"] == losses


@pytest.mark.parametrize("classes_at_once", [1, 3])
def test_classes_at_once_changes_nothing_but_rounding(classes_at_once, tmp_path):
    together = run(digits_task(tmp_path / "a"), classes_at_once=4).images
    apart = run(digits_task(tmp_path / "b"), classes_at_once=classes_at_once).images
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


def test_the_loss_falls(tmp_path):
    reporter = RecordingReporter()
    run(digits_task(tmp_path, ipc=1), reporter, iterations=60, batch_real=24, init="noise")
    losses = reporter.values["loss"]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_an_ipc_larger_than_a_class_is_refused(tmp_path):
    with pytest.raises(UsageError, match="ipc 24 is larger than class 0, which has 23"):
        run(digits_task(tmp_path, ipc=24))


def test_a_run_that_diverges_says_when(tmp_path):
    with pytest.raises(RunFailedError, match="images held NaN or infinity at iteration 6"):
        run(digits_task(tmp_path), lr_img=1e38)


@pytest.mark.parametrize("allow_flip", [False, True])
def test_flips_are_left_out_where_they_change_the_label(allow_flip, tmp_path):
    made = [
        run(digits_task(tmp_path / text, allow_flip=allow_flip), augmentation=text).images
        for text in ("flip", "none")
    ]
    assert torch.equal(*made) is not allow_flip


@pytest.mark.parametrize(
    "bad",
    [
        {"iterations": 0},
        {"init": "zeros"},
        {"lr_img": 0.0},
        {"momentum": -0.1},
        {"classes_at_once": 0},
        {"checkpoint_seconds": -1.0},
    ],
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DM.Config(**bad)
