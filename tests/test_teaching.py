"""Students that are mixed and taught: the formulas written out, and a whole run."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from made_up import made_up, share
from simulated_device import simulated_gpu
from tasks import RecordingReporter, replay_steps
from test_students import CLASSES, SEEDS, SHAPE, fresh, small_set, spec_of

from robustdd_bench.board.divisions import division_of, division_title, remark
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.evaluation.teaching import Mix, beta_share, draw_mix, taught_loss
from robustdd_bench.evaluation.updates import rate_at
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.protocol.tracks import MixSpec, TeachingSpec, parse_track
from robustdd_bench.seeds import isolated_rng
from robustdd_bench.toolkit.dsa import Augmentation, apply

TAUGHT = {
    "optimiser": "adamw",
    "schedule": "cosine",
    "weight_decay": 0.02,
    "learning_rate": 0.01,
    "mix": MixSpec(),
    "teaching": TeachingSpec(temperature=4.0),
    "augmentation": "crop_scale",
}


def teacher(seed=5, dtype=torch.float32):
    with isolated_rng(seed):
        return convnet(SHAPE, CLASSES, depth=1, width=6, norm="batch").to(dtype).eval()


def train(distilled, spec, **options):
    network = fresh()
    found = train_student(
        network, distilled, spec, SEEDS, 0, flip=False, reporter=RecordingReporter(), **options
    )
    return found, network


def stored_labels(distilled, spec, guide):
    """The field's way: first label every view of every epoch, then train on what was stored."""
    layer = fresh()[0].double()
    order = SEEDS.generator("student-order", 0)
    augment, mixing = (SEEDS.generator(f"student-{name}", 0) for name in ("augment", "mix"))
    views, count = [], len(distilled)
    augmentation = Augmentation.parse(spec.augmentation)
    for _ in range(spec.epochs):
        for where in torch.randperm(count, generator=order).split(spec.batch_size):
            x = layer(distilled.images[where])
            x = apply(x, augmentation.draw(len(where), SHAPE[1:], augment))
            drawn = draw_mix(spec.mix, len(where), SHAPE[1:], mixing)
            pairs = [
                x[i] * drawn.mask[0] + x[int(drawn.order[i])] * (1 - drawn.mask[0])
                for i in range(len(where))
            ]
            view = torch.stack(pairs)
            with torch.no_grad():
                told = (guide(view) / spec.teaching.temperature).softmax(1)
            views.append((view, told))
    return views


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_taught_student_is_that_of_stored_labels(optimiser):
    """One loop of torch's own optimisers and schedules over labels that were stored before."""
    distilled, guide = small_set(), teacher(dtype=torch.float64)
    # float64: AdamW divides the gradients of a bias before a norm, which are rounding alone.
    distilled = dataclasses.replace(distilled, images=distilled.images.double())
    spec = spec_of(**(TAUGHT | {"optimiser": optimiser, "epochs": 4}))
    network, other = fresh().double(), fresh().double()
    train_student(
        network, distilled, spec, SEEDS, 0, flip=False, reporter=RecordingReporter(), teacher=guide
    )
    views = stored_labels(distilled, spec, guide)
    kinds = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.02),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.02),
    }
    optim = kinds[optimiser](other.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, T_max=len(views))
    for view, told in views:
        answer = (other[1](view) / 4.0).log_softmax(1)
        loss = 16 * (told * (told.log() - answer)).sum(1).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
    for one, expected in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, expected, atol=1e-6)


def test_without_a_teacher_labels_are_mixed_in_the_shares_of_the_pixels():
    spec = TeachingSpec()
    source = torch.Generator().manual_seed(2)
    logits = torch.randn(6, CLASSES, generator=source, dtype=torch.float64)
    labels = torch.arange(6) % CLASSES
    mix = draw_mix(MixSpec(), 6, (8, 8), source)
    kept = float(mix.mask.mean())
    expected = [
        -kept * logits[i].log_softmax(0)[labels[i]]
        - (1 - kept) * logits[i].log_softmax(0)[labels[mix.order[i]]]
        for i in range(6)
    ]
    found = taught_loss(logits, logits, labels, mix, spec, None)
    assert float(found) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-7)
    soft = torch.randn(6, CLASSES, generator=source, dtype=torch.float64).softmax(1)
    expected = kept * soft + (1 - kept) * soft[mix.order]
    loss = -(expected * logits.log_softmax(1)).sum(1).mean()
    assert float(taught_loss(logits, logits, soft, mix, None, None)) == pytest.approx(
        float(loss), rel=1e-7
    )


def test_cross_entropy_of_a_teacher_is_taken_at_the_students_own_temperature():
    guide = teacher(dtype=torch.float64)
    source = torch.Generator().manual_seed(2)
    view = torch.randn(4, *SHAPE, generator=source, dtype=torch.float64)
    logits = torch.randn(4, CLASSES, generator=source, dtype=torch.float64)
    spec = TeachingSpec(temperature=3.0, loss="cross-entropy")
    found = taught_loss(logits, view, torch.zeros(4).long(), None, spec, guide)
    told = (guide(view) / 3).softmax(1).detach()
    assert float(found) == pytest.approx(
        float(-(told * logits.log_softmax(1)).sum(1).mean()), rel=1e-12
    )


def test_cutmix_takes_a_rectangle_and_mixup_a_share():
    source = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(200):
        mix = draw_mix(MixSpec(kind="cutmix"), 5, (16, 12), source)
        cut = mix.mask[0, 0] == 0
        rows, columns = cut.any(1), cut.any(0)
        assert torch.equal(cut, rows[:, None] & columns[None])  # one rectangle
        assert sorted(mix.order.tolist()) == [0, 1, 2, 3, 4]
        areas.append(float(cut.float().mean()))
    assert 0.25 < sum(areas) / 200 < 0.45  # half, less what is cut off at the edges
    mix = draw_mix(MixSpec(kind="mixup"), 3, (4, 4), source)
    x = torch.randn(3, 1, 4, 4, generator=source)
    part = float(mix.mask[0, 0, 0, 0])
    assert torch.allclose(mix.images(x), part * x + (1 - part) * x[mix.order])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.5])
def test_shares_are_those_of_the_beta_distribution(alpha):
    from scipy.stats import beta, kstest

    source = torch.Generator().manual_seed(7)
    draws = [beta_share(alpha, source) for _ in range(1000)]
    assert kstest(draws, beta(alpha, alpha).cdf).pvalue > 0.01


def test_rates_fall_as_a_cosine_or_drop_once():
    cosine, drop = spec_of(schedule="cosine"), spec_of(drop_at=0.5)
    assert [rate_at(cosine, 2.0, s, 4) for s in range(4)] == pytest.approx(
        [1 + math.cos(math.pi * s / 4) for s in range(4)]
    )
    assert [rate_at(drop, 2.0, s, 5) for s in range(5)] == pytest.approx([2, 2, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("guided", [True, False])
def test_steps_can_be_captured(guided, monkeypatch):
    distilled, spec = (
        small_set(),
        spec_of(
            **TAUGHT,
        ),
    )
    guide = teacher() if guided else None
    expected = train(distilled, spec, teacher=guide)[0].sha256()
    replay_steps(monkeypatch)
    assert train(distilled, spec, teacher=guide)[0].sha256() == expected


@pytest.mark.parametrize("guided", [True, False])
def test_on_a_simulated_gpu_the_student_is_the_same_and_nothing_waits(guided):
    distilled, spec = small_set(), spec_of(**(TAUGHT | {"epochs": 3}))
    guide = teacher() if guided else None
    expected = train(distilled, spec, teacher=guide)[0]
    with simulated_gpu() as gpu:
        network = fresh().to("cuda")
        layer_and_body = teacher().to("cuda") if guided else None
        reporter = RecordingReporter()
        found = train_student(
            network, distilled, spec, SEEDS, 0, flip=False, reporter=reporter,
            teacher=layer_and_body,
        )  # fmt: skip
        assert found.sha256() == expected.sha256()
    assert reporter.notes == []
    assert gpu.replays > len(gpu.graphs) > 0


def test_a_set_without_a_teacher_is_trained_on_its_own_labels():
    distilled, spec = small_set(), spec_of(**TAUGHT)
    plain = train(distilled, spec)[0]
    assert plain.sha256() != train(distilled, spec, teacher=teacher())[0].sha256()
    # On a track that asks for none, a teacher is not used.
    other = spec_of(augmentation="crop_scale")
    assert (
        train(distilled, other, teacher=teacher())[0].sha256()
        == train(distilled, other)[0].sha256()
    )


def test_mixing_is_a_matter_of_the_recipe_alone():
    distilled = small_set()
    mixed = spec_of(mix=MixSpec(kind="mixup"))
    assert train(distilled, mixed)[0].sha256() != train(distilled, spec_of())[0].sha256()
    assert isinstance(draw_mix(MixSpec(), 2, (4, 4), torch.Generator()), Mix)


TRACK = """
name = "taught"
version = 1
summary = "s"
[data]
dataset = "digits"
ipc = 1
[students]
epochs = 1
[students.teaching]
[students.adversarial]
eps = 0.1
[threat]
ladder = [0.1]
headline = 0.1
[[attacks]]
name = "fgsm"
"""


def test_students_cannot_be_taught_and_trained_adversarially():
    with pytest.raises(UsageError, match="students: students that are mixed or taught"):
        parse_track(TRACK, "taught.toml")


def test_the_identity_of_tracks_without_teaching_is_what_it_was():
    track = parse_track(TRACK.replace("[students.teaching]", ""), "t.toml")
    fields = track.model_dump(mode="json")["students"]
    assert not {"optimiser", "schedule", "mix", "teaching"} & set(fields)


TEACHER = {"network": "convnet", "options": {}, "sha256": "0" * 64, "tensors": {"w": [3, 4]}}


def test_a_teacher_makes_a_division_of_its_own_where_it_teaches():
    record = made_up("m", share(50), teacher=TEACHER)
    assert division_of(record) == "hard"
    students = record.track.students.model_copy(update={"teaching": TeachingSpec()})
    taught = record.model_copy(
        update={"track": record.track.model_copy(update={"students": students})}
    )
    assert division_of(taught) == "teacher"
    assert division_title("teacher, imported") == "Labels by a teacher, imported"
    assert remark("teacher") == "labels by a teacher"
    size = taught.distilled.stored_bytes((1, 8, 8), 10)
    assert size == taught.distilled.images * (4 * 64 + 8) + 4 * 12
    assert json.loads(taught.model_dump_json())["distilled"]["teacher"]["network"] == "convnet"
