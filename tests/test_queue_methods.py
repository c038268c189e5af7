"""IDM and ROME: the queue of networks, the images' steps, and whole runs beside a naive loop."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from robustdd_idm.distiller import IDM
from robustdd_rome.distiller import ROME, towards_next_class
from tasks import (
    NORMALISE,
    InterruptedRunError,
    RecordingReporter,
    counting_network,
    digits_task,
    replay_steps,
)
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.mosaics import decode_mosaics
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import Seeds
from robustdd_bench.toolkit.adversarial import Adversary
from robustdd_bench.toolkit.dsa import Augmentation, apply
from robustdd_bench.toolkit.inputspace import features, split_network, to_pixels
from robustdd_bench.toolkit.mosaics import decode_inputs, starting_mosaics
from robustdd_bench.toolkit.queues.networks import NetworkQueue

SHORT = {
    "iterations": 6,
    "batch_real": 8,
    "networks_start": 2,
    "networks_max": 3,
    "fresh_every": 2,
    "train_steps": 2,
    "train_batch": 12,
    "lr_img": 0.02,
    "meter_every": 4,
}
METHODS = {"idm": IDM, "rome": ROME}


def method(name, **config):
    attack = {"attack_steps": 2, "attack_step_size": 0.5} if name == "rome" else {}
    return METHODS[name](METHODS[name].Config(**(SHORT | attack | config)))


def run(name, task, reporter=None, **config):
    return method(name, **config).distill(task, reporter or RecordingReporter())


@pytest.mark.parametrize("name", METHODS)
def test_the_plugin_registers_it(name):
    entry = collect(get_plugin_manager()).get("distillers", name)
    assert entry.plugin == name
    config = entry.load().Config()
    assert (config.iterations, config.lr_img, config.mosaic) == (20000, 0.2, 2)


@pytest.mark.parametrize(
    ("mosaic", "kind"), [(1, "zca"), (2, "none"), (2, "normalise"), (2, "zca"), (4, "none")]
)
@pytest.mark.parametrize("name", METHODS)
def test_sets_have_ipc_stored_images_of_each_class(name, mosaic, kind, tmp_path):
    statistics = ((0.3,), (0.38,)) if kind == "normalise" else ((), ())
    task = digits_task(tmp_path, ipc=3, preprocessing=Preprocessing(kind, *statistics))
    made = run(name, task, mosaic=mosaic, iterations=2)
    made.check((1, 8, 8), 4, 3)
    assert (made.mosaic, made.training_images) == (mosaic, 12 * mosaic**2)
    assert made.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_decides_and_the_global_generator_is_left_alone(name, tmp_path):
    before = torch.random.get_rng_state()
    made = [
        run(name, digits_task(tmp_path / folder, seed=seed)).sha256()
        for folder, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert made[0] == made[1] != made[2]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("interrupt_at", [1, 4])
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_in_the_set_it_would_have_made(name, interrupt_at, tmp_path):
    whole = run(name, digits_task(tmp_path / "whole"))
    task = digits_task(tmp_path / "killed")
    with pytest.raises(InterruptedRunError):
        run(name, task, RecordingReporter(interrupt_at), checkpoint_seconds=0)
    reporter = RecordingReporter()
    resumed = run(name, task, reporter, checkpoint_seconds=0)
    assert reporter.steps == list(range(interrupt_at, 7))
    assert resumed.sha256() == whole.sha256()


def test_a_checkpoint_holds_no_more_networks_than_the_queue(tmp_path):
    task = digits_task(tmp_path)
    run("idm", task, iterations=12, checkpoint_seconds=0)
    weights = sum(p.numel() for p in task.network(0).parameters())
    size = (tmp_path / "idm.safetensors").stat().st_size
    # Three networks with their momentum, at four bytes; then images and names.
    assert 24 * weights < size < 24 * weights + 20_000


# --- a run beside a naive loop -----------------------------------------------------------------


def naive(name, task, config):
    """The published loop: lists of networks, one optimiser for all images, a class at a time."""
    seeds, ipc, classes = task.seeds, task.ipc, task.num_classes
    augmentation = Augmentation.parse(config.augmentation).without("flip")
    noise = torch.Generator()
    layer, _ = split_network(task.network(0))
    z = starting_mosaics(task, ipc, layer, config.init, config.mosaic).requires_grad_()
    optimiser = torch.optim.SGD([z], lr=config.lr_img, momentum=config.momentum)
    queue, drawn, losses = [], 0, []

    def push():
        nonlocal drawn
        _, body = split_network(task.network(seeds.seed("network", drawn)))
        drawn += 1
        sgd = torch.optim.SGD(body.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        queue.append([body, sgd, 0, 0])

    def attacked(body, x, y):
        if name == "idm":
            return x
        body.eval()
        eps = task.threat.eps
        start = to_pixels(layer, x)
        low = start.flatten(1).amin(1).clamp_max(0).view(-1, 1, 1, 1)
        high = start.flatten(1).amax(1).clamp_min(1).view(-1, 1, 1, 1)
        point = start + eps * torch.empty_like(start).uniform_(-1, 1, generator=noise)
        point = point.clamp(low, high)
        for _ in range(config.attack_steps):
            leaf = point.detach().requires_grad_()
            cost = F.cross_entropy(body(layer(leaf)), (y + 1) % classes, reduction="sum")
            slope = torch.autograd.grad(cost, leaf)[0].sign()
            point = leaf.detach() - config.attack_step_size * eps * slope
            point = (start + (point - start).clamp(-eps, eps)).clamp(low, high)
        return layer(point).detach()

    for _ in range(config.networks_start):
        push()
    for iteration in range(config.iterations):
        if iteration and iteration % config.meter_every == 0:
            for entry in queue:
                entry[2:] = [0, 0]
        if iteration % config.fresh_every == 0:
            if len(queue) == config.networks_max:
                queue.pop(0)
            push()
        choice = seeds.generator("choice", iteration)
        noise.manual_seed(seeds.seed("attack", iteration))
        source = seeds.generator("real", iteration)
        augment = seeds.generator("augmentation", iteration)
        body, _, hits, seen = queue[int(torch.randperm(len(queue), generator=choice)[0])]
        accuracy = 100 * hits / max(seen, 1)
        body.eval()
        indices, real, targets = task.class_indices(), [], []
        for k in range(classes):
            order = torch.randperm(len(indices[k]), generator=source)
            real.append(layer(task.pixels(indices[k][order[: config.batch_real]])))
        params = [augmentation.draw(1, z.shape[2:], augment, siamese=True) for _ in range(classes)]
        real = [apply(x, drawn_k) for x, drawn_k in zip(real, params, strict=True)]
        targets = [torch.full((len(x),), k) for k, x in enumerate(real)]
        # Random starts are drawn for all classes at once.
        moved = attacked(body, torch.cat(real), torch.cat(targets)).split([len(x) for x in real])
        total = 0.0
        for k in range(classes):
            own = decode_mosaics(z[k * ipc : (k + 1) * ipc], config.mosaic)
            own = apply(own, params[k])
            apart = features(body, own).mean(0) - features(body, moved[k]).mean(0).detach()
            wrong = F.cross_entropy(body(own), torch.full((len(own),), k))
            if name == "idm":
                loss = apart.square().sum() + config.ce_weight * accuracy * wrong
            else:
                loss = 0.2 * (0.5 * apart.abs().sum()) ** 2
                loss = loss + 0.8 * config.ce_weight * accuracy * wrong
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach())
        losses.append(total / classes)
        source = seeds.generator("training", iteration)
        for place in torch.randperm(len(queue), generator=choice)[: config.train_networks].tolist():
            entry = queue[place]
            for _ in range(config.train_steps):
                batch = torch.randperm(len(task.images), generator=source)[: config.train_batch]
                x, y = layer(task.pixels(batch)), task.labels[batch]
                x = attacked(entry[0], x, y)
                logits = entry[0].train()(x)
                entry[1].zero_grad()
                F.cross_entropy(logits, y).backward()
                entry[1].step()
                entry[2] += int((logits.argmax(1) == y).sum())
                entry[3] += len(y)
    return to_pixels(layer, z.detach()), losses


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("mosaic", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_the_published_loop(name, mosaic, replayed, tmp_path, monkeypatch):
    """With a queue that overflows, meters that begin anew, and captured steps or none."""
    if replayed:
        replay_steps(monkeypatch)
    task = digits_task(tmp_path, classes=3, per_class=10)
    reporter = RecordingReporter()
    distiller = method(name, mosaic=mosaic, iterations=7)
    made = distiller.distill(task, reporter)
    images, losses = naive(name, task, distiller.config)
    torch.testing.assert_close(made.images, images, rtol=1e-3, atol=1e-4)
    assert reporter.values["loss"] == pytest.approx(losses, rel=1e-3)
    assert max(reporter.values["network_accuracy"]) > 0


def test_networks_with_buffers_are_kept_with_them(tmp_path):
    """Batch norm and a buffer that counts: resuming and repeating give the same set."""
    made = []
    for name in ("a", "b"):
        task = dataclasses.replace(digits_task(tmp_path / name), network=counting_network)
        made.append(run("rome", task).sha256())
    assert made[0] == made[1]
    task = dataclasses.replace(digits_task(tmp_path / "c"), network=counting_network)
    with pytest.raises(InterruptedRunError):
        run("rome", task, RecordingReporter(3), checkpoint_seconds=0)
    assert run("rome", task, checkpoint_seconds=0).sha256() == made[0]


def test_the_queue_holds_the_newest_networks(tmp_path):
    queue = NetworkQueue(
        digits_task(tmp_path), start=1, fresh_every=2, capacity=3, iterations=8, note=print
    )
    found = {iteration: queue.begin(iteration) for iteration in range(8)}
    assert found[0] == found[1] == [0, 1]
    assert found[2] == [0, 1, 2]
    assert found[5] == [1, 2, 3]
    assert found[6] == [2, 3, 4]
    small = NetworkQueue(
        digits_task(tmp_path), start=1, fresh_every=2, capacity=100, iterations=3, note=print
    )
    assert all(len(kept) == 2 for kept in small.state(1).values()), "no room for what never comes"
    assert all(len(kept) == 3 for kept in small.state(3).values())


# --- attacks and mosaics -----------------------------------------------------------------------


def two_class_body():
    """Logits (0, sum of pixels): towards class 1 every pixel goes up."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        body[1].weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
    return body


def adversary(**changes):
    threat = ThreatModel("Linf", 0.1)
    given = {"threat": threat, "steps": 5, "step_size": 0.05, "random_start": False}
    return Adversary(**(given | changes))


def test_pixels_go_towards_the_next_class_inside_their_ball_and_range():
    layer = Preprocessing("normalise", (0.5,), (0.25,)).layer(torch.zeros(1, 1, 2, 2))
    pixels = torch.tensor([0.0, 0.5, 0.95, 1.2]).view(1, 1, 2, 2)
    attack = towards_next_class(adversary(extend_box=True), 2, published=False)
    found = attack(layer, two_class_body(), layer(pixels), torch.tensor([0]), torch.Generator())
    # The last pixel is the image's largest, 1.2: it is the end of its range.
    expected = torch.tensor([0.1, 0.6, 1.05, 1.2]).view(1, 1, 2, 2)
    torch.testing.assert_close(to_pixels(layer, found), expected)
    down = attack(layer, two_class_body(), layer(pixels), torch.tensor([1]), torch.Generator())
    expected = torch.tensor([0.0, 0.4, 0.85, 1.1]).view(1, 1, 2, 2)
    torch.testing.assert_close(to_pixels(layer, down), expected, atol=1e-6, rtol=0)


def test_the_published_space_cuts_off_what_is_darker_than_the_mean():
    layer = Preprocessing("normalise", (0.5,), (0.25,)).layer(torch.zeros(1, 1, 2, 2))
    z = layer(torch.tensor([0.0, 0.4, 0.6, 1.0]).view(1, 1, 2, 2))
    attack = towards_next_class(adversary(), 2, published=True)
    found = attack(layer, two_class_body(), z, torch.tensor([0]), torch.Generator())
    # Inputs were -2, -.4, .4 and 2; the ball is clamped to [0,1] whatever it is.
    assert found.flatten().tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0])


def test_no_eps_is_no_attack_and_minus_one_is_the_tracks(tmp_path):
    task = digits_task(tmp_path)
    assert method("rome", eps=0.0).objective(task).attack is None
    made = [
        run("rome", digits_task(tmp_path / str(i)), eps=eps).sha256()
        for i, eps in enumerate((-1.0, task.threat.eps, 0.05, 0.0))
    ]
    assert made[0] == made[1]
    assert len(set(made)) == 3


@pytest.mark.parametrize("kind", ["none", "normalise", "zca"])
def test_mosaics_are_taken_apart_in_pixels_whatever_the_input_space(kind, tmp_path):
    statistics = ((0.3,), (0.38,)) if kind == "normalise" else ((), ())
    task = digits_task(tmp_path, preprocessing=Preprocessing(kind, *statistics))
    layer, _ = split_network(task.network(0))
    z = starting_mosaics(task, 2, layer, "real", 2)
    expected = layer(decode_mosaics(to_pixels(layer, z), 2))
    torch.testing.assert_close(decode_inputs(layer, z, 2), expected, atol=1e-3, rtol=1e-3)


def test_a_mosaic_starts_from_small_real_images_of_its_class(tmp_path):
    task = digits_task(tmp_path, ipc=3, preprocessing=Preprocessing())
    z = starting_mosaics(task, 3, nn.Identity(), "real", 2)
    small = F.avg_pool2d(task.pixels(), 2)
    for image, label in zip(z, torch.arange(4).repeat_interleave(3), strict=True):
        for rows in (slice(0, 4), slice(4, 8)):
            for columns in (slice(0, 4), slice(4, 8)):
                same = (small == image[:, rows, columns]).flatten(1).all(1)
                assert (task.labels[same] == label).any()


# --- what is refused ---------------------------------------------------------------------------


def test_tiles_that_do_not_fit_are_refused_before_anything_is_done(tmp_path):
    with pytest.raises(UsageError, match=r"mosaic of 3x3 tiles .* these are 8x8"):
        run("idm", digits_task(tmp_path), mosaic=3)


def test_an_ipc_larger_than_a_class_is_refused(tmp_path):
    with pytest.raises(UsageError, match="ipc 24 is larger than class 0, which has 23"):
        run("rome", digits_task(tmp_path, ipc=24))


def test_a_run_that_diverges_says_so(tmp_path):
    with pytest.raises(RunFailedError, match="held NaN or infinity at iteration 6"):
        run("idm", digits_task(tmp_path), lr_img=1e38)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("idm", {"networks_start": 4}),
        ("idm", {"mosaic": 0}),
        ("idm", {"train_steps": 0}),
        ("idm", {"augmentation": "nonsense"}),
        ("rome", {"alpha": 1.1}),
        ("rome", {"eps": -0.5}),
        ("rome", {"space": "normalised"}),
    ],
)
def test_values_out_of_range_are_refused(name, bad):
    with pytest.raises((ValueError, UsageError), match=str(next(iter(bad)))):
        method(name, **bad)


def test_the_loss_falls(tmp_path):
    """By matching alone, over networks that are not trained."""
    config = {"iterations": 30, "ce_weight": 0.0, "train_networks": 0, "fresh_every": 60}
    for name, share in (("idm", 0.6), ("rome", 0.8)):
        reporter = RecordingReporter()
        task = dataclasses.replace(
            digits_task(tmp_path / name, ipc=1, preprocessing=NORMALISE), seeds=Seeds(0, name)
        )
        run(name, task, reporter, batch_real=24, init="noise", mosaic=1, lr_img=0.1, **config)
        losses = reporter.values["loss"]
        assert sum(losses[-5:]) < share * sum(losses[:5])
