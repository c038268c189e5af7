"""Students: the track's recipe and nothing else; the last iterate is what counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tasks import RecordingReporter
from torch import nn

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError
from robustdd_bench.evaluation import students
from robustdd_bench.evaluation.students import total_steps, train_student
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import AdversarialSpec, StudentSpec
from robustdd_bench.seeds import Seeds, isolated_rng
from robustdd_bench.toolkit.dsa import Augmentation, apply

SEEDS = Seeds(3, "track")
SHAPE = (1, 8, 8)
CLASSES = 3


def small_set(count=10, *, soft=False, **fields):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    if soft:
        labels = torch.softmax(torch.randn(count, CLASSES, generator=generator), 1)
    images = torch.rand(count, *SHAPE, generator=generator) * 1.4 - 0.2
    return DistilledSet(images=images, labels=labels, **fields)


def fresh(seed=0):
    layer = Preprocessing("normalise", (0.3,), (0.4,))
    options = {"depth": 2, "width": 4}
    images = torch.zeros(1, *SHAPE)
    factory = NetworkFactory(convnet, options, SHAPE, CLASSES, layer, images, torch.device("cpu"))
    return factory(seed)


def spec_of(**fields):
    return StudentSpec(**({"epochs": 5, "batch_size": 4, "learning_rate": 0.05} | fields))


def train(distilled, spec, index=0, *, flip=False, **options):
    return train_student(
        fresh(), distilled, spec, SEEDS, index, flip=flip, reporter=RecordingReporter(), **options
    )


def naive_attack(answer, x, y, spec, norm, noise):
    """Projected gradient ascent from a random start, in [0,1] extended to each image's range."""

    def norms(values):
        return values.square().sum((1, 2, 3), keepdim=True).sqrt()

    low = torch.stack([torch.full(SHAPE, min(0.0, float(image.min()))) for image in x])
    high = torch.stack([torch.full(SHAPE, max(1.0, float(image.max()))) for image in x])
    if norm == "Linf":
        start = spec.eps * (2 * torch.rand(x.shape, generator=noise) - 1)
    else:
        start = torch.randn(x.shape, generator=noise)
        start = spec.eps * start / norms(start)
    point = torch.minimum(torch.maximum(x + start, low), high)
    clean = answer(x).detach()
    for _ in range(spec.steps):
        leaf = point.detach().requires_grad_()
        logs = answer(leaf).log_softmax(1)
        if spec.flavour == "trades":
            gain = (clean.softmax(1) * (clean.log_softmax(1) - logs)).sum()
        else:
            gain = -(y * logs).sum()
        (slope,) = torch.autograd.grad(gain, leaf)
        step = spec.relative_step * spec.eps
        if norm == "Linf":
            delta = (point + step * slope.sign() - x).clamp(-spec.eps, spec.eps)
        else:
            delta = point + step * slope / norms(slope) - x
            delta = delta * (spec.eps / norms(delta)).clamp_max(1)
        point = torch.minimum(torch.maximum(x + delta, low), high)
    return point


def naive(distilled, spec, index=0, *, flip=False, norm="Linf"):
    """SGD with momentum and weight decay written out, one image batch after the other."""
    network = fresh()
    rate = spec.learning_rate if distilled.learning_rate is None else distilled.learning_rate
    strategy = distilled.augmentation if distilled.augmentation is not None else spec.augmentation
    augmentation = Augmentation.parse(strategy)
    if not flip:
        augmentation = augmentation.without("flip")
    noise = SEEDS.generator("student-augment", index)
    order = SEEDS.generator("student-order", index)
    start = SEEDS.generator("student-adversary", index)
    parameters = list(network.parameters())
    velocities = [None] * len(parameters)
    per_epoch = -(-len(distilled) // spec.batch_size)
    steps = spec.epochs * per_epoch
    if spec.max_steps is not None:
        steps = min(steps, spec.max_steps)
    for step in range(steps):
        lr = rate if step < int(steps * spec.drop_at) else rate * spec.drop_factor
        place = step % per_epoch
        if place == 0:
            permutation = torch.randperm(len(distilled), generator=order)
        where = permutation[place * spec.batch_size : (place + 1) * spec.batch_size]
        x, y = distilled.images[where], distilled.labels[where]
        if y.ndim == 1:
            y = F.one_hot(y, CLASSES).float()
        drawn = None
        if str(augmentation) != "none":
            drawn = augmentation.draw(len(x), SHAPE[1:], noise)

        def answer(pixels, drawn=drawn):
            features = network[0](pixels)
            return network[1](features if drawn is None else apply(features, drawn))

        logs = answer(x).log_softmax(1)
        loss = -(y * logs).sum(1).mean()
        if spec.adversarial is not None:
            points = naive_attack(answer, x, y, spec.adversarial, norm, start)
            hard = answer(points).log_softmax(1)
            if spec.adversarial.flavour == "pgd":
                loss = -(y * hard).sum(1).mean()
            else:
                distance = (logs.exp() * (logs - hard)).sum(1).mean()
                loss = loss + spec.adversarial.beta * distance
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                change = gradient + spec.weight_decay * parameter
                before = velocities[i]
                velocities[i] = change if before is None else spec.momentum * before + change
                parameter.sub_(lr * velocities[i])
    return network, float(loss.detach())


def assert_same_weights(one: nn.Module, two: nn.Module) -> None:
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-6, msg=name)


@pytest.mark.parametrize(
    ("fields", "recipe", "flip"),
    [
        ({}, {}, False),
        ({}, {"momentum": 0.0, "weight_decay": 0.1}, False),
        ({}, {"drop_at": 0.3, "drop_factor": 0.5}, False),
        ({}, {"drop_at": 1.0}, False),
        ({}, {"max_steps": 7}, False),
        ({}, {"batch_size": 64}, False),
        ({"soft": True}, {}, False),
        ({"learning_rate": 0.2}, {}, False),
        ({}, {"augmentation": "flip_scale"}, False),
        ({}, {"augmentation": "flip_scale"}, True),
        ({"augmentation": "scale_rotate"}, {"augmentation": "none"}, True),
        ({"augmentation": "none"}, {"augmentation": "flip_scale"}, True),
    ],
)
def test_a_student_is_what_the_recipe_written_out_makes(fields, recipe, flip) -> None:
    distilled, spec = small_set(**fields), spec_of(**recipe)
    student = train(distilled, spec, flip=flip)
    network, loss = naive(distilled, spec, flip=flip)
    assert_same_weights(student.network, network)
    assert student.final_loss == pytest.approx(loss, rel=1e-4)
    assert student.steps == total_steps(spec, len(distilled))


@pytest.mark.parametrize(
    ("fields", "adversarial", "norm", "augmentation"),
    [
        ({}, {}, "Linf", "none"),
        ({}, {"flavour": "trades", "beta": 3.0}, "Linf", "none"),
        ({}, {"steps": 2, "relative_step": 0.6}, "L2", "none"),
        ({}, {"flavour": "trades"}, "L2", "none"),
        ({"soft": True}, {}, "Linf", "none"),
        ({"soft": True}, {"flavour": "trades"}, "Linf", "none"),
        ({}, {}, "Linf", "scale_rotate"),
        ({}, {"flavour": "trades"}, "L2", "scale_rotate"),
    ],
)
def test_an_adversarially_trained_student_is_what_the_recipe_written_out_makes(
    fields, adversarial, norm, augmentation
) -> None:
    distilled = small_set(**fields)
    adversary = AdversarialSpec(**({"eps": 0.1, "steps": 3} | adversarial))
    spec = spec_of(adversarial=adversary, augmentation=augmentation)
    student = train(distilled, spec, norm=norm)
    network, loss = naive(distilled, spec, norm=norm)
    assert_same_weights(student.network, network)
    assert student.final_loss == pytest.approx(loss, rel=1e-4)
    assert student.steps == total_steps(spec, len(distilled))
    assert student.sha256() != train(distilled, spec_of(augmentation=augmentation)).sha256()


def test_trades_without_its_regulariser_is_natural_training() -> None:
    spec = spec_of(adversarial=AdversarialSpec(flavour="trades", eps=0.2, beta=0.0))
    assert_same_weights(train(small_set(), spec).network, train(small_set(), spec_of()).network)


def test_an_adversarial_student_is_the_same_again_and_another_one_for_another_index() -> None:
    spec = spec_of(adversarial=AdversarialSpec(eps=0.1, steps=2))
    torch.manual_seed(0)
    first, state = train(small_set(), spec), torch.random.get_rng_state()
    assert torch.equal(state, torch.Generator().manual_seed(0).get_state())
    torch.manual_seed(1)
    assert train(small_set(), spec).sha256() == first.sha256()
    assert train(small_set(), spec, 1).sha256() != first.sha256()


@pytest.mark.parametrize("flavour", ["pgd", "trades"])
def test_adversarial_training_makes_a_student_more_robust(flavour) -> None:
    distilled, recipe = small_set(), {"epochs": 60, "batch_size": 16}
    plain = spec_of(**recipe)
    hard = spec_of(**recipe, adversarial=AdversarialSpec(flavour=flavour, eps=0.1, steps=3))
    losses = []
    for spec in (plain, hard):
        network = train(distilled, spec).network
        images = distilled.images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(network(images), distilled.labels), images)
        moved = distilled.images + 0.1 * slope.sign()
        losses.append(float(F.cross_entropy(network(moved), distilled.labels)))
    assert losses[1] < 0.9 * losses[0]


def test_batch_norm_counts_what_is_trained_on_and_not_the_search_for_it() -> None:
    spec = spec_of(adversarial=AdversarialSpec(eps=0.1, steps=3))
    with isolated_rng(0):
        body = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, CLASSES)
        )
    network = nn.Sequential(nn.Identity(), body)
    student = train_student(
        network, small_set(), spec, SEEDS, 0, flip=False, reporter=RecordingReporter()
    )
    norms = [m for m in student.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {student.steps}


@pytest.mark.parametrize("drop_at", [0.25, 0.5, 0.51, 1.0])
def test_the_learning_rate_drops_once_at_its_share_of_the_steps(drop_at, monkeypatch) -> None:
    rates = []
    step = students._Training.step

    def watched(self, batch, augmenter, mix, rate):
        rates.append(rate)
        return step(self, batch, augmenter, mix, rate)

    monkeypatch.setattr(students._Training, "step", watched)
    spec = spec_of(drop_at=drop_at, drop_factor=0.1)
    train(small_set(), spec)
    drop = int(15 * drop_at)
    assert rates == [0.05] * drop + [0.05 * 0.1] * (15 - drop)


@pytest.mark.parametrize("adversarial", [None, AdversarialSpec(flavour="pgd", eps=0.1, steps=2)])
@pytest.mark.parametrize("augmentation", ["none", "color_crop_cutout_scale_rotate"])
def test_a_step_finds_everything_where_the_first_one_did(
    adversarial, augmentation, monkeypatch
) -> None:
    spec = spec_of(
        adversarial=adversarial,
        augmentation=augmentation,
        momentum=0.9,
        weight_decay=1e-3,
        drop_at=0.5,
    )
    plain = train(small_set(), spec)
    # Captured steps, rehearsed: the first function of each kind of step stands for all later ones.
    monkeypatch.setenv("ROBUSTDD_CAPTURE", "rehearse")
    rehearsed = train(small_set(), spec)
    assert_same_weights(plain.network, rehearsed.network)
    assert plain.final_loss == rehearsed.final_loss


def test_the_set_s_own_learning_rate_goes_before_the_track_s() -> None:
    own = train(small_set(learning_rate=0.2), spec_of())
    assert own.learning_rate == 0.2
    assert train(small_set(), spec_of()).learning_rate == 0.05
    assert_same_weights(own.network, train(small_set(), spec_of(learning_rate=0.2)).network)


def test_a_track_can_leave_the_set_s_own_learning_rate_aside() -> None:
    found = train(small_set(learning_rate=0.2), spec_of(own_rate=False))
    assert found.learning_rate == 0.05
    assert_same_weights(found.network, train(small_set(), spec_of()).network)


def test_the_last_iterate_counts_even_if_an_earlier_one_was_better() -> None:
    distilled, spec = small_set(), spec_of(learning_rate=0.3, drop_at=1.0)
    earlier = [
        train(distilled, spec_of(**(spec.model_dump() | {"max_steps": k}))).train_accuracy
        for k in range(1, 15)
    ]
    last = train(distilled, spec)
    assert last.train_accuracy < max(earlier)
    assert_same_weights(last.network, naive(distilled, spec)[0])


def test_a_student_is_the_same_again_and_another_one_for_another_index() -> None:
    distilled, spec = small_set(), spec_of(augmentation="scale")
    torch.manual_seed(0)
    first = train(distilled, spec)
    torch.manual_seed(1)
    assert train(distilled, spec).sha256() == first.sha256()
    assert train(distilled, spec, 1).sha256() != first.sha256()


def test_the_hash_of_a_student_is_of_every_weight() -> None:
    student = train(small_set(), spec_of())
    before = student.sha256()
    with torch.no_grad():
        list(student.network.parameters())[-1][0] += 1e-3
    assert student.sha256() != before


def test_a_trained_student_is_frozen_and_in_eval_mode() -> None:
    network = train(small_set(), spec_of()).network
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("soft", [False, True])
def test_the_accuracy_on_the_set_is_that_of_the_last_iterate(soft) -> None:
    distilled = small_set(soft=soft)
    student = train(distilled, spec_of(epochs=40))
    hard = distilled.labels.argmax(1) if soft else distilled.labels
    hits = int((student.network(distilled.images).argmax(1) == hard).sum())
    assert student.train_accuracy == pytest.approx(hits / 10)


@pytest.mark.parametrize("rate", [1e30, 3e38])
def test_a_student_that_diverges_is_an_error_that_names_it(rate) -> None:
    with pytest.raises(RunFailedError, match=r"student 2 diverged \(loss .*\) at learning rate"):
        train(small_set(learning_rate=rate), spec_of(), 2)


def test_weights_that_become_infinite_in_the_last_step_are_noticed() -> None:
    spec = spec_of(max_steps=1, drop_at=1.0, weight_decay=10.0)
    with pytest.raises(RunFailedError, match="student 0 diverged"):
        train(small_set(learning_rate=3e38), spec)


@pytest.mark.parametrize(
    ("images", "fields", "steps"),
    [
        (10, {}, 15),
        (8, {}, 10),
        (1, {}, 5),
        (10, {"max_steps": 4}, 4),
        (10, {"max_steps": 99}, 15),
        (1000, {"batch_size": 256, "epochs": 300}, 1200),
    ],
)
def test_steps_are_epochs_of_batches_up_to_the_ceiling(images, fields, steps) -> None:
    assert total_steps(spec_of(**fields), images) == steps
