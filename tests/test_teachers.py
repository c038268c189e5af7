"""Teachers: their training, what is recovered from them, what they choose, and where they are kept.

The figures in data/published_teachers.json are from the published code of GUARD (yumozi/GUARD at
493b19c) and RDED (LINs-lab/RDED), run on the tensors of published_teachers.py in float64.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from published_teachers import network, tensors
from robustdd_coresets.relabelled import RandomRobustLabels
from robustdd_guard.distiller import GUARD
from robustdd_mat.distiller import MAT
from robustdd_mat.relabelled import MATRobustLabels
from robustdd_rded.distiller import RDED
from robustdd_sre2l.distiller import SRe2L
from tasks import SMALL, InterruptedRunError, RecordingReporter, digits_task
from torch import nn

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.teachers import Teacher
from robustdd_bench.toolkit.dsa import Augmentation, apply
from robustdd_bench.toolkit.inputspace import split_network
from robustdd_bench.toolkit.teachers import training
from robustdd_bench.toolkit.teachers.config import TeacherRecipe
from robustdd_bench.toolkit.teachers.penalties import cure_penalty, difference_penalty
from robustdd_bench.toolkit.teachers.recovery import (
    Recovery,
    RecoveryConfig,
    Statistics,
    jittered,
    random_crop,
)
from robustdd_bench.toolkit.teachers.selection import mosaics, padded, surest
from robustdd_bench.toolkit.teachers.training import TeacherStore

PUBLISHED = json.loads(
    (Path(__file__).parent / "data" / "published_teachers.json").read_text(encoding="utf-8")
)
OPTIONS = {"depth": 1, "width": 4, "norm": "batch"}
RECIPE = TeacherRecipe(
    network="convnet",
    options=OPTIONS,
    epochs=3,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    batch_size=32,
    augmentation="crop_flip",
)
QUICK = {"teacher_depth": 1, "teacher_width": 8, "teacher_epochs": 3, "teacher_batch": 16}


def store(task, **fields):
    return TeacherStore(task, dataclasses.replace(RECIPE, **fields))


def trained(task, reporter=None, **fields):
    kept = store(task, **fields)
    kept.train(reporter or RecordingReporter())
    return kept.load()


# Against published code


@pytest.mark.parametrize(
    ("name", "penalty", "weight", "radius"),
    [
        ("none", None, 0, 0),
        ("cure", cure_penalty, 100, 3),
        ("cure-small", cure_penalty, 7, 0.5),
        ("difference", difference_penalty, 1e-4, 3),
        ("difference-large", difference_penalty, 10, 0.5),
    ],
)
def test_penalties_are_those_of_the_published_code(name, penalty, weight, radius):
    (x, y), net = tensors(), network()
    net.train()
    loss = F.cross_entropy(net(x), y)
    if penalty is not None:
        net.eval()
        loss = loss + penalty(net, x, y, weight=weight, radius=radius)
    expected = PUBLISHED[name]
    assert float(loss.detach()) == pytest.approx(expected["loss"], rel=1e-12)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    for (key, _), gradient in zip(net.named_parameters(), gradients, strict=True):
        found = [float(gradient.sum()), float(gradient.norm())]
        assert found == pytest.approx(expected["gradients"][key], rel=1e-8, abs=1e-12), key


def with_statistics():
    net = network().train()
    with torch.no_grad():
        net(tensors()[0])
    return net.eval()


def test_the_distance_of_statistics_is_that_of_the_published_code():
    (x, y), net, expected = tensors(), with_statistics(), PUBLISHED["recovery"]
    z = (x * 0.7 + 0.1).requires_grad_()
    with Statistics(net) as statistics:
        loss = F.cross_entropy(net(z), y)
        distance = statistics.take()
    (gradient,) = torch.autograd.grad(loss + 0.01 * distance, z)
    assert float(distance.detach()) == pytest.approx(expected["distance"], rel=1e-12)
    found = [float(gradient.sum()), float(gradient.norm()), float((gradient * x).sum())]
    assert found == pytest.approx(expected["gradient"], rel=1e-10)


@pytest.mark.parametrize(("factor", "size"), [(1, 8), (2, 4)])
def test_crops_and_mosaics_are_those_of_the_published_code(factor, size):
    source, expected = torch.Generator().manual_seed(5), PUBLISHED[f"rded-{factor}"]
    for published in (1, 2):  # one generator for both, as where the figures were made
        side = {1: 8, 2: 4}[published]
        crops = torch.rand(9, 3, 1, side, side, generator=source, dtype=torch.float64)
        if published == factor:
            break
    chosen = surest(with_statistics(), crops.transpose(0, 1), 2, 4, (8, 8))
    assert [float(c.sum()) for c in chosen] == pytest.approx(expected["selected"], rel=1e-12)
    mixed = mosaics(chosen, 4 // factor**2, factor, (8, 8))
    places = torch.arange(64, dtype=torch.float64).view(8, 8)
    found = [[float(m.sum()), float((m * places).sum())] for m in mixed]
    for one, other in zip(found, expected["mixed"], strict=True):
        assert one == pytest.approx(other, rel=1e-6)  # theirs: float32, one of three equal channels


# Training


def test_a_teacher_is_trained_as_written_out(tmp_path):
    task = digits_task(tmp_path, allow_flip=True)
    found, teacher = trained(task)
    kept = store(task)
    net = task.registered_network("convnet", OPTIONS)(kept.seeds.seed("teacher-init"))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=3)
    net.train()
    for epoch in range(3):
        order = torch.randperm(
            len(task.labels), generator=kept.seeds.generator("teacher-order", epoch)
        )
        source = kept.seeds.generator("teacher-augment", epoch)
        for index in order.split(32):
            x = net[0](task.pixels(index))
            drawn = [
                Augmentation.parse(name).draw(len(index), (8, 8), source)
                for name in ("crop", "flip")
            ]
            for params in drawn:
                x = apply(x, params)
            optimiser.zero_grad()
            F.cross_entropy(net[1](x), task.labels[index]).backward()
            optimiser.step()
        schedule.step()
    for name, tensor in net[1].state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(teacher.weights[name], tensor, atol=1e-6), name
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


def test_an_interrupted_training_ends_in_the_same_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE_SECONDS", 0.0)
    _, whole = trained(digits_task(tmp_path / "whole"))
    task = digits_task(tmp_path / "killed")
    with pytest.raises(InterruptedRunError):
        trained(task, RecordingReporter(3))
    reporter = RecordingReporter()
    _, resumed = trained(task, reporter)
    assert reporter.steps == [3]
    assert resumed.sha256() == whole.sha256()


def test_a_teacher_is_known_by_everything_that_shapes_it(tmp_path):
    task = digits_task(tmp_path)
    keys = {store(task).key}
    for fields in (
        {"epochs": 4},
        {"penalty": "cure", "weight": 1.0, "radius": 1.0},
        {"penalty": "pgd", "eps": 0.1, "attack_steps": 2, "attack_step_size": 0.05},
        {"options": OPTIONS | {"width": 5}},
        {"augmentation": "crop"},
    ):
        keys.add(store(task, **fields).key)
    keys.add(store(digits_task(tmp_path, seed=1)).key)
    keys.add(store(digits_task(tmp_path, preprocessing=Preprocessing("none"))).key)
    assert len(keys) == 8
    # Not by the method: two methods share it.
    other = dataclasses.replace(task, seeds=dataclasses.replace(task.seeds, method="other"))
    assert store(other).key == store(task).key


def test_a_robust_teacher_is_robust_and_a_penalty_makes_it_smoother(tmp_path):
    task = digits_task(tmp_path, per_class=60)
    long = {"epochs": 12, "options": OPTIONS | {"width": 16}}
    adversary = {"eps": 0.15, "attack_steps": 5, "attack_step_size": 0.05}

    def kept(network):
        x, y = task.pixels().clone().requires_grad_(), task.labels
        (slope,) = torch.autograd.grad(F.cross_entropy(network(x), y), x)
        moved = (x + 0.15 * slope.sign()).clamp(0, 1)
        return float((network(moved).argmax(1) == y).float().mean())

    natural = trained(task, **long)[0]
    robust = trained(task, penalty="pgd", **adversary, **long)[0]
    assert kept(robust) > kept(natural) + 0.1
    cured = trained(task, penalty="cure", weight=300.0, radius=1.0, **long)[0]

    def curvature(network):
        layer, body = split_network(network)
        x = layer(task.pixels()[:32])
        return cure_penalty(body, x, task.labels[:32], weight=1.0, radius=1.0).item()

    assert curvature(cured) < 0.7 * curvature(natural)


def test_a_teacher_that_diverges_says_what_to_lower(tmp_path):
    with pytest.raises(RunFailedError, match=r"teacher diverged in epoch \d.*teacher_lr"):
        trained(digits_task(tmp_path), learning_rate=1e30)


# In a set


def small_teacher(task):
    return trained(task)[1]


def test_a_set_is_read_back_with_its_teacher(tmp_path):
    task = digits_task(tmp_path)
    images, labels = task.real_images(2, torch.Generator())
    plain = DistilledSet(images=images, labels=labels)
    taught = dataclasses.replace(plain, teacher=small_teacher(task))
    taught.check((1, 8, 8), 4, 2)
    taught.save(tmp_path / "set.safetensors")
    read = DistilledSet.load(tmp_path / "set.safetensors")
    assert read.sha256() == taught.sha256() != plain.sha256()
    assert read.teacher is not None
    assert (read.teacher.network, read.teacher.options) == ("convnet", OPTIONS)
    x = images[:3]
    body = task.registered_network("convnet", OPTIONS)(9)[1]
    assert torch.equal(
        read.teacher.load_into(body)(x),
        taught.teacher.load_into(task.registered_network("convnet", OPTIONS)(8)[1])(x),
    )
    name = next(iter(read.teacher.weights))
    changed = {**read.teacher.weights, name: read.teacher.weights[name] + 1e-3}
    other = dataclasses.replace(read, teacher=dataclasses.replace(read.teacher, weights=changed))
    assert other.sha256() != read.sha256()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * math.nan, "holds NaN or infinity"),
        (lambda w: w.double(), "must be float32"),
    ],
)
def test_a_teacher_that_cannot_be_stored_is_refused(change, message, tmp_path):
    task = digits_task(tmp_path)
    teacher = small_teacher(task)
    name = next(iter(teacher.weights))
    weights = {**teacher.weights, name: change(teacher.weights[name])}
    images, labels = task.real_images(2, torch.Generator())
    made = DistilledSet(
        images=images, labels=labels, teacher=dataclasses.replace(teacher, weights=weights)
    )
    with pytest.raises(RunFailedError, match=message):
        made.check((1, 8, 8), 4, 2)


def test_weights_of_another_network_are_refused(tmp_path):
    task = digits_task(tmp_path)
    teacher = small_teacher(task)
    wider = task.registered_network("convnet", OPTIONS | {"width": 5})(0)[1]
    with pytest.raises(UsageError, match=r"does not fit network 'convnet'.*other names or shapes"):
        teacher.load_into(wider)
    with pytest.raises(UsageError, match="no_such"):
        task.registered_network("no_such", {})


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SRe2L, {"teacher": "resnet-18"}, "resnet-18"),
        (SRe2L, {"teacher": "mlp"}, r"no batch norm.*resnet18-bn"),
        (GUARD, {"teacher_depth": 9}, "depth 9 needs images divisible by 512"),
        (RDED, {"candidates": 7, "factor": 2}, "raise candidates, or lower factor"),
        (RDED, {"factor": 9}, "factor 9 leaves no pixel of images of 8x8"),
    ],
)
def test_settings_that_do_not_fit_are_told_before_anything_is_trained(
    kind, settings, message, tmp_path
):
    with pytest.raises(UsageError, match=message):
        kind(kind.Config(**settings)).parts(digits_task(tmp_path))


def test_an_unknown_augmentation_of_the_teacher_is_told_at_once():
    with pytest.raises(UsageError, match="unknown augmentation 'blur'"):
        SRe2L.Config(teacher_augmentation="blur")


@pytest.mark.parametrize("kind", [RandomRobustLabels, MATRobustLabels])
def test_a_radius_that_is_neither_one_nor_the_tracks_is_told_at_once(kind):
    with pytest.raises(ValueError, match=r"teacher_eps must be positive, 0, or -1 .*-0.5"):
        kind.Config(teacher_eps=-0.5)


# Recovery


def test_recovery_needs_batch_norm():
    with pytest.raises(UsageError, match=r"no batch norm.*resnet18-bn"):
        Statistics(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))


def recovery(task, **fields):
    network, teacher = trained(task)
    config = RecoveryConfig(**({"iterations": 5, "jitter": 0} | fields))
    return Recovery(task, config, 2, network, teacher, task.seeds), network


def test_steps_of_recovery_are_adams(tmp_path):
    task = digits_task(tmp_path)
    made, network = recovery(task, image_lr=0.1)
    layer, body = split_network(network)
    low, high = (float(layer(torch.full((1, 1, 8, 8), edge)).mean()) for edge in (0.0, 1.0))
    starts = [torch.randn((4, 1, 8, 8), generator=task.seeds.generator("noise", i)) for i in (0, 1)]
    leaves = [start.requires_grad_() for start in starts]
    optimisers = [torch.optim.Adam([leaf], lr=0.1, betas=(0.5, 0.9)) for leaf in leaves]
    for iteration in range(3):
        made.step(iteration)
        for leaf, optimiser in zip(leaves, optimisers, strict=True):
            optimiser.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * iteration / 5))
            with Statistics(body) as statistics:
                loss = F.cross_entropy(body(leaf), torch.arange(4))
                loss = loss + 0.01 * statistics.take()
            (leaf.grad,) = torch.autograd.grad(loss, leaf)
            optimiser.step()
            leaf.data.clamp_(low, high)
    found = made.current()
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = torch.stack([leaf.detach() for leaf in leaves], 1).flatten(0, 1)
    assert torch.allclose(layer(found.images), expected, atol=1e-5)
    assert found.images.min() >= -1e-6
    assert found.images.max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", [SRe2L, GUARD])
def test_loss_falls_and_an_interrupted_recovery_ends_in_the_same_set(kind, tmp_path):
    def run(task, reporter, **more):
        settings = QUICK | {"iterations": 30, "jitter": 1, "crop": 0.5} | more
        return kind(kind.Config(**settings)).distill(task, reporter)

    reporter = RecordingReporter()
    whole = run(digits_task(tmp_path / "whole"), reporter)
    losses = reporter.values["loss"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    task = digits_task(tmp_path / "killed")
    with pytest.raises(InterruptedRunError):
        run(task, RecordingReporter(12), checkpoint_seconds=0)
    assert run(task, RecordingReporter(), checkpoint_seconds=0).sha256() == whole.sha256()
    hard = run(digits_task(tmp_path / "hard"), RecordingReporter(), labels="hard")
    assert torch.equal(hard.images, whole.images)
    assert hard.teacher is None
    assert whole.teacher is not None


def test_the_two_penalties_of_guard_are_two_teachers(tmp_path):
    task = digits_task(tmp_path)
    sets = [
        GUARD(GUARD.Config(**QUICK, iterations=2, penalty=penalty, curvature_beta=1.0)).distill(
            task, RecordingReporter()
        )
        for penalty in ("cure", "difference")
    ]
    assert sets[0].teacher.sha256() != sets[1].teacher.sha256()


def test_crops_are_those_of_the_formula_and_stay_inside():
    source = torch.Generator().manual_seed(0)
    crops = [random_crop((32, 24), 0.2, source) for _ in range(500)]
    for crop in crops:
        assert crop.top >= 0
        assert crop.top + crop.height <= 32
        assert crop.left >= 0
        assert crop.left + crop.width <= 24
        assert crop.height * crop.width >= 0.2 * 32 * 24 * 0.85  # whole pixels
    areas = [crop.height * crop.width / (32 * 24) for crop in crops]
    assert min(areas) < 0.3
    assert max(areas) > 0.85
    assert {crop.height == crop.width for crop in crops} == {True, False}
    squares = [random_crop((32, 32), 0.2, source, (1.0, 1.0)) for _ in range(50)]
    assert all(crop.height == crop.width for crop in squares)


def test_jitter_moves_the_batch_around_its_edges():
    x = torch.arange(2 * 64, dtype=torch.float32).view(2, 1, 8, 8)
    seen = {
        tuple(
            jittered(x, RecoveryConfig(jitter=2), torch.Generator().manual_seed(s), True)[0, 0, 0]
        )
        for s in range(40)
    }
    shifts = {
        tuple(torch.roll(x, (down, right), (2, 3))[0, 0, 0])
        for down in range(3)
        for right in range(3)
    }
    as_floats = [{tuple(map(float, row)) for row in rows} for rows in (seen, shifts)]
    assert as_floats[0] == as_floats[1]


# Selection


def test_rded_keeps_pieces_of_real_images_that_the_teacher_is_surest_of(tmp_path):
    task = digits_task(tmp_path, per_class=24)
    made = RDED(RDED.Config(**QUICK, candidates=20, crops=3)).distill(task, RecordingReporter())
    made.check((1, 8, 8), 4, 2)
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    network = TeacherStore(task, RDED(RDED.Config(**QUICK)).recipe(task)).load()[0]
    random = task.real_images(2, torch.Generator())[0]
    losses = [
        F.cross_entropy(network(images), made.labels).item() for images in (made.images, random)
    ]
    assert losses[0] < losses[1]
    with pytest.raises(UsageError, match="raise candidates, or lower factor"):
        RDED(RDED.Config(**QUICK, candidates=7, factor=2)).distill(task, RecordingReporter())


def test_tiles_are_padded_in_the_middle():
    x = torch.ones(1, 1, 3, 4)
    out = padded(x, (8, 8))
    assert out.shape == (1, 1, 8, 8)
    assert torch.equal(out[0, 0, 2:5, 2:6], torch.ones(3, 4))
    assert float(out.sum()) == 12


# Controls


def test_relabelled_sets_are_the_methods_own_with_a_robust_teacher(tmp_path):
    task = digits_task(tmp_path)
    teacher = QUICK | {"teacher_attack_steps": 2}
    random = RandomRobustLabels(RandomRobustLabels.Config(**teacher)).distill(
        task, RecordingReporter()
    )
    seeds = dataclasses.replace(task.seeds, method="random")
    expected = task.real_images(2, seeds.generator("random"))
    assert torch.equal(random.images, expected[0])
    assert torch.equal(random.labels, expected[1])
    mat, apart = MAT(MAT.Config(**SMALL)), digits_task(tmp_path / "mat")
    for part in mat.parts(apart):
        mat.make_part(part, apart, RecordingReporter())
    own = mat.distill(apart, RecordingReporter())
    relabelled = MATRobustLabels(MATRobustLabels.Config(**SMALL, **teacher))
    parts = relabelled.parts(task)
    assert [part.name for part in parts] == ["teacher", "expert-0", "expert-1"]
    for part in parts:
        relabelled.make_part(part, task, RecordingReporter())
    made = relabelled.distill(task, RecordingReporter())
    assert torch.equal(made.images, own.images)
    assert made.learning_rate == own.learning_rate
    assert isinstance(made.teacher, Teacher)
    assert made.teacher.sha256() == random.teacher.sha256()


def test_relabelled_sets_have_the_presets_of_their_method():
    import tomllib

    own = tomllib.loads(MAT.PRESETS.read_text(encoding="utf-8"))
    ours = tomllib.loads(MATRobustLabels.PRESETS.read_text(encoding="utf-8"))
    assert ours
    for preset, tables in ours.items():
        for track, values in tables.items():
            kept = {k: v for k, v in values.items() if not k.startswith("teacher")}
            assert kept == own[preset][track], (preset, track)


def test_the_method_of_the_page_makes_a_set_with_a_teacher(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "teachers.md"
    code = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code, names)
    task = digits_task(tmp_path)
    # A ConvNet-3 needs larger images than these.
    wider = dataclasses.replace(
        task, networks=lambda name, options, kind: task.networks(name, options | {"depth": 1}, kind)
    )
    made = names["Mine"](None).distill(wider, RecordingReporter())
    made.check((1, 8, 8), 4, 2)
    assert made.teacher.network == "convnet"


def test_operations_are_counted_from_the_teacher_itself():
    from robustdd_bench.protocol.networks import convnet
    from robustdd_bench.toolkit.operations import Facts, ImageCosts
    from robustdd_bench.toolkit.teachers.operations import TeacherOperations

    none = ImageCosts(1.0, 1.0, 1.0)
    facts = Facts(
        classes=4,
        ipc=2,
        images=8,
        pixels=64,
        train=100,
        threat=digits_task(Path()).threat,
        augmentation="none",
        input=none,
        network=none,
        shape=(1, 8, 8),
        build=lambda name, options: convnet((1, 8, 8), 4, **options),
    )

    def counted(**fields):
        return TeacherOperations(facts, dataclasses.replace(RECIPE, **fields))

    # A convolution of 9 values to 4 channels at 64 places, and a linear layer of 64 values.
    forward = 2 * (64 * 4 * 9 + 4 * 16 * 4)
    assert counted().forward() == forward
    natural = counted().training()
    assert counted(epochs=6).training() == 2 * natural
    assert 2 * forward * 300 <= natural <= 3 * forward * 300
    pgd = counted(penalty="pgd", attack_steps=5).training()
    assert pgd == natural + 5 * 300 * counted().pixels()
    assert counted(penalty="cure").training() > counted(penalty="difference").training() > natural
    made = SRe2L(SRe2L.Config(teacher_depth=1, teacher_width=4, iterations=7)).operations(facts)
    assert made.distill == 7 * 8 * counted().pixels()
