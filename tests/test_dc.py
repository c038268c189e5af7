import dataclasses

import pytest
import torch
from robustdd_dc.distillers import DC, DSA
from robustdd_dc.matching import class_gradient
from tasks import (
    InterruptedRunError,
    RecordingReporter,
    counting_network,
    digits_task,
    replay_steps,
)
from torch import nn
from torch.nn.functional import cross_entropy

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.augment import Drawn
from robustdd_bench.toolkit.distances import gradient_distance
from robustdd_bench.toolkit.dsa import STRATEGY, Augmentation, apply
from robustdd_bench.toolkit.inputspace import split_network, starting_images

METHODS = [DC, DSA]
SHORT = {"iterations": 4, "outer": 2, "inner": 2, "batch_real": 8, "batch_train": 5}


def run(method, task, reporter=None, **config):
    config = method.Config(**(SHORT | config))
    return method(config).distill(task, reporter or RecordingReporter())


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_the_plugin_registers_both_methods(name):
    entry = collect(get_plugin_manager()).get("distillers", name)
    assert entry.plugin == "dc"
    assert entry.load().Config().iterations == 1000


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["none", "normalise", "zca"])
def test_sets_have_ipc_images_of_each_class(method, kind, tmp_path):
    statistics = ((0.3,), (0.38,)) if kind == "normalise" else ((), ())
    task = digits_task(tmp_path, ipc=3, preprocessing=Preprocessing(kind, *statistics))
    made = run(method, task, iterations=2)
    made.check((1, 8, 8), 4, 3)
    assert made.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert not made.images.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_and_the_global_generator_is_left_alone(method, tmp_path):
    before = torch.random.get_rng_state()
    made = [
        run(method, digits_task(tmp_path / name, seed=seed)).sha256()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("interrupt_at", [1, 3])
def test_a_killed_run_ends_in_the_set_it_would_have_made(method, interrupt_at, tmp_path):
    whole = run(method, digits_task(tmp_path / "whole"))
    task = digits_task(tmp_path / "killed")
    with pytest.raises(InterruptedRunError):
        run(method, task, RecordingReporter(interrupt_at), checkpoint_seconds=0)
    reporter = RecordingReporter()
    resumed = run(method, task, reporter, checkpoint_seconds=0)
    assert reporter.steps == list(range(interrupt_at, 5))
    assert resumed.sha256() == whole.sha256()


def test_state_of_other_settings_is_not_resumed_from(tmp_path):
    task, reporter = digits_task(tmp_path), RecordingReporter()
    run(DC, task, checkpoint_seconds=0)
    run(DC, task, reporter, lr_img=0.2)
    assert reporter.steps == [1, 2, 3, 4]


@pytest.mark.parametrize("method", METHODS)
def test_the_distance_falls(method, tmp_path):
    task, reporter = digits_task(tmp_path, ipc=1), RecordingReporter()
    run(method, task, reporter, iterations=30, outer=1, batch_real=24, init="noise", lr_img=1.0)
    distances = reporter.values["distance"]
    assert sum(distances[-5:]) < 0.9 * sum(distances[:5])


def test_class_by_class_gradients_equal_one_backward_of_the_sum_in_float64():
    with isolated_rng(0):
        body = convnet((2, 8, 8), 3, depth=2, width=4).double()
    source = torch.Generator().manual_seed(1)
    real = torch.randn(3, 6, 2, 8, 8, generator=source, dtype=torch.float64)
    z = torch.randn(3, 2, 2, 8, 8, generator=source, dtype=torch.float64)
    pieces = [class_gradient(body, real[k], z[k], torch.tensor([k]), None) for k in range(3)]
    leaf = z.clone().requires_grad_()
    parameters = list(body.parameters())
    total = 0
    for k in range(3):
        a = torch.autograd.grad(cross_entropy(body(real[k]), torch.full((6,), k)), parameters)
        b = torch.autograd.grad(
            cross_entropy(body(leaf[k]), torch.full((2,), k)), parameters, create_graph=True
        )
        for grad_a, grad_b in zip(a, b, strict=True):
            if grad_a.ndim == 1:
                continue
            for row_a, row_b in zip(grad_a, grad_b, strict=True):
                u, v = row_a.flatten(), row_b.flatten()
                norms = (u * u).sum().sqrt() * (v * v).sum().sqrt()
                total = total + 1 - (u * v).sum() / (norms + 1e-6)
    total.backward()
    torch.testing.assert_close(sum(d for d, _ in pieces), total.detach())
    torch.testing.assert_close(torch.stack([g for _, g in pieces]), leaf.grad)


def test_real_and_synthetic_images_share_one_augmentation():
    with isolated_rng(0):
        body = convnet((1, 8, 8), 3, depth=2, width=4).double()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for family in ("color", "crop", "cutout", "scale", "rotate"):
        drawn = Augmentation((family,)).draw(
            1, (8, 8), torch.Generator().manual_seed(2), siamese=True
        )
        distance, _ = class_gradient(body, x, x.clone(), torch.tensor([1]), Drawn(drawn))
        assert distance < 1e-3  # the same images, augmented alike, have the same gradients


def as_the_paper_writes_it(task, config, augmentation):
    """Algorithm 1 as a plain loop: images, and the mean distance of each iteration."""
    seeds, classes, distances = task.seeds, range(task.num_classes), []
    layer, _ = split_network(task.network(0))
    z = starting_images(task, task.ipc, layer, config.init)
    velocity = torch.zeros_like(z)
    for iteration in range(config.iterations):
        _, body = split_network(task.network(seeds.seed("network", iteration)))
        optimiser = torch.optim.SGD(body.parameters(), lr=config.lr_net)
        weights = [p for p in body.parameters() if p.ndim > 1]
        total = torch.zeros(())
        for step in range(config.outer):
            real = seeds.generator("real", iteration, step)
            source = seeds.generator("augmentation", iteration, step)
            gradients = []
            for k, index in zip(classes, task.class_indices(), strict=True):
                order = torch.randperm(len(index), generator=real)[: config.batch_real]
                x = layer(task.pixels(index[order]))
                own = z[k * task.ipc : (k + 1) * task.ipc].clone().requires_grad_()
                drawn = augmentation.draw(1, z.shape[2:], source, siamese=True)
                loss = cross_entropy(body(apply(x, drawn)), torch.full((len(x),), k))
                target = torch.autograd.grad(loss, weights)
                loss = cross_entropy(body(apply(own, drawn)), torch.full((task.ipc,), k))
                found = torch.autograd.grad(loss, weights, create_graph=True)
                distance = gradient_distance(target, found)
                gradients.append(torch.autograd.grad(distance, own)[0])
                total = total + distance.detach()
            velocity = config.momentum * velocity + torch.cat(gradients)
            z = z - config.lr_img * velocity
            source = seeds.generator("training", iteration, step)
            for _ in range(config.inner if step < config.outer - 1 else 0):
                order = torch.randperm(len(z), generator=source)
                for batch in order.split(config.batch_train):
                    drawn = augmentation.draw(len(batch), z.shape[2:], source)
                    optimiser.zero_grad()
                    logits = body(apply(z[batch], drawn))
                    cross_entropy(logits, batch // task.ipc).backward()
                    optimiser.step()
        distances.append(float(total / (config.outer * task.num_classes)))
    return z, distances


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("strategy", ["none", STRATEGY])
@pytest.mark.parametrize("network", [None, counting_network])
def test_a_run_is_the_papers_loop_bit_for_bit(network, strategy, replayed, tmp_path, monkeypatch):
    """With a class of fewer images than a real batch, captured steps or none, buffers or none."""
    if replayed:
        replay_steps(monkeypatch)
    task = digits_task(tmp_path, preprocessing=Preprocessing("none"), allow_flip=True, uint8=True)
    if network is not None:
        task = dataclasses.replace(task, network=network)
    method = DC if strategy == "none" else DSA
    config = method.Config(iterations=4, outer=3, inner=2, batch_real=24, batch_train=5)
    reporter = RecordingReporter()
    made = method(config).distill(task, reporter)
    images, distances = as_the_paper_writes_it(task, config, Augmentation.parse(strategy))
    assert torch.equal(made.images, images)
    assert reporter.values["distance"] == distances


def test_noise_and_real_starts_are_in_the_networks_input_space(tmp_path):
    task = digits_task(tmp_path)
    tiny = {"iterations": 1, "outer": 1, "lr_img": 1e-20, "momentum": 0.0}
    noise = run(DC, task, **tiny).images
    expected = torch.randn(8, 1, 8, 8, generator=task.seeds.generator("init")) * 0.38 + 0.3
    torch.testing.assert_close(noise, expected)
    real = run(DSA, task, **tiny).images
    expected, _ = task.real_images(2, task.seeds.generator("init"))
    torch.testing.assert_close(real, expected)


@pytest.mark.parametrize(
    ("ipc", "loops"),
    [(1, (1, 1)), (5, (10, 50)), (10, (10, 50)), (20, (20, 25)), (50, (50, 10)), (80, (50, 10))],
)
def test_loop_counts_are_the_papers(ipc, loops):
    from robustdd_dc.distillers import _recipe

    assert _recipe(DC.Config(), "none").loops(ipc) == loops
    assert _recipe(DC.Config(outer=3), "none").loops(ipc) == (3, loops[1])


@pytest.mark.parametrize("method", METHODS)
def test_an_ipc_larger_than_a_class_is_refused(method, tmp_path):
    with pytest.raises(UsageError, match="ipc 24 is larger than class 0, which has 23"):
        run(method, digits_task(tmp_path, ipc=24))


def test_a_run_that_diverges_says_when(tmp_path):
    with pytest.raises(RunFailedError, match="images held NaN or infinity at iteration 4"):
        run(DC, digits_task(tmp_path), lr_img=1e38)


@pytest.mark.parametrize("allow_flip", [False, True])
def test_flips_are_left_out_where_they_change_the_label(allow_flip, tmp_path):
    """With flip as the only family, a set made without flips is one made without augmentation."""
    made = [
        run(DSA, digits_task(tmp_path / text, allow_flip=allow_flip), augmentation=text).sha256()
        for text in ("flip", "none")
    ]
    assert (made[0] == made[1]) is not allow_flip


def test_images_as_bytes_are_read_as_pixels(tmp_path):
    as_bytes = digits_task(tmp_path / "a", uint8=True)
    as_floats = dataclasses.replace(
        as_bytes, images=as_bytes.images.float() / 255, work_dir=tmp_path / "b"
    )
    assert run(DSA, as_bytes).sha256() == run(DSA, as_floats).sha256()


def test_a_network_without_preprocessing_layer_works(tmp_path):
    def network(seed):
        with isolated_rng(seed):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))

    task = dataclasses.replace(digits_task(tmp_path), network=network)
    found = run(DSA, task)
    found.check((1, 8, 8), 4, 2)
    assert torch.bincount(found.labels).tolist() == [2] * 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "bad",
    [
        {"iterations": 0},
        {"outer": -1},
        {"init": "zeros"},
        {"lr_img": 0.0},
        {"momentum": 1.0},
        {"batch_real": 0},
        {"checkpoint_seconds": -1.0},
    ],
)
def test_values_out_of_range_are_refused(method, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        method.Config(**bad)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(UsageError, match="did you mean 'cutout'"):
        DSA.Config(augmentation="cutoff")
