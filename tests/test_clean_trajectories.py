"""FTD, DATM and TESLA: what each adds to trajectory matching, and what it leaves as it is."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from robustdd_datm.distiller import DATM
from robustdd_ftd.distiller import FTD
from robustdd_mtt.distiller import MTT
from robustdd_tesla.distiller import TESLA
from tasks import SMALL, InterruptedRunError, RecordingReporter, digits_task
from test_unroll import problem, relative

from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.toolkit.dsa import STRATEGY
from robustdd_bench.toolkit.fast.flat import FlatNetwork
from robustdd_bench.toolkit.trajectories.experts import ExpertStore, Trajectories
from robustdd_bench.toolkit.trajectories.matching import TrajectoryMatcher
from robustdd_bench.toolkit.trajectories.rules import Rules
from robustdd_bench.toolkit.trajectories.starting import Experts
from robustdd_bench.toolkit.trajectories.unroll import Step, adjoint_gradients, unrolled_gradients

METHODS = {"ftd": FTD, "datm": DATM, "tesla": TESLA}
WINDOW = {"first_start_epochs": 1, "growth_iterations": 3}
SETTINGS = {
    "ftd": FTD.Config(**SMALL, rho=0.1, image_ema=0.9),
    "datm": DATM.Config(**SMALL, **WINDOW, loss_limit=1.0, label_lr=5.0),
    "tesla": TESLA.Config(**SMALL),
    "tesla, labels": TESLA.Config(**SMALL, teacher_labels=True, student_batch=3),
    "datm, sgd": DATM.Config(
        **SMALL | {"image_optimiser": "sgd"}, **WINDOW, loss_limit=0.98, student_batch=3,
        image_ema=0.5,
    ),
}  # fmt: skip


def method_of(name, **changes):
    config = SETTINGS[name]
    if changes:
        config = dataclasses.replace(config, **changes)
    return METHODS[name.partition(",")[0]](config)


def prepared(method, task):
    for part in method.parts(task):
        if not part.output.exists():
            method.make_part(part, task, RecordingReporter())
    return method


def distil(method, task, reporter=None):
    return prepared(method, task).distill(task, reporter or RecordingReporter())


@pytest.fixture
def task(tmp_path):
    return digits_task(tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_the_plugins_register_them(name):
    entry = collect(get_plugin_manager()).get("distillers", name)
    assert entry.plugin == name
    assert entry.load() is METHODS[name]


@pytest.mark.parametrize("name", SETTINGS)
def test_sets_have_ipc_images_of_each_class_and_labels_of_their_kind(task, name):
    made = distil(method_of(name), task)
    made.check((1, 8, 8), 4, 2)
    assert made.learning_rate > 0
    soft = name.startswith("datm") or name == "tesla, labels"
    assert made.soft_labels == soft
    if soft:
        assert made.labels.dtype == torch.float32
        torch.testing.assert_close(made.labels.sum(1), torch.ones(8))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_seed_decides_and_the_global_generator_is_left_alone(tmp_path, name):
    before = torch.random.get_rng_state()
    made = [
        distil(method_of(name), digits_task(tmp_path / folder, seed=seed)).sha256()
        for folder, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("interrupt_at", [1, 3, 5])
def test_a_killed_run_ends_in_the_set_it_would_have_made(tmp_path, name, interrupt_at):
    task = dataclasses.replace(digits_task(tmp_path / "whole"), augmentation=STRATEGY)
    method = method_of(name, checkpoint_seconds=0.0)
    whole = distil(method, task)
    killed = dataclasses.replace(task, work_dir=tmp_path / "killed")
    with pytest.raises(InterruptedRunError):
        distil(method, killed, RecordingReporter(interrupt_at))
    reporter = RecordingReporter()
    assert distil(method, killed, reporter).sha256() == whole.sha256()
    assert reporter.steps == list(range(interrupt_at, 6))


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls(tmp_path, name):
    changes = {"iterations": 30, "student_steps": 5, "expert_batch": 16, "alpha_lr": 0.1}
    reporter = RecordingReporter()
    distil(method_of(name, **changes), digits_task(tmp_path), reporter)
    losses = reporter.values["loss"]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


# FTD.


def test_ftd_without_flatness_and_average_is_mtt_bit_for_bit(tmp_path):
    task = dataclasses.replace(digits_task(tmp_path), augmentation=STRATEGY)
    plain = MTT(MTT.Config(**SMALL))
    flat = FTD(FTD.Config(**SMALL, rho=0.0, image_ema=0.0))
    assert ExpertStore(task, plain.recipe(task)).key == ExpertStore(task, flat.recipe(task)).key
    one = distil(plain, task)
    two = distil(flat, dataclasses.replace(task, work_dir=tmp_path / "ftd"))
    assert one.sha256() == two.sha256()


def test_ftds_set_is_the_average_of_all_images_so_far(tmp_path):
    task = digits_task(tmp_path)
    shown = {}
    for iterations in range(5):
        method = method_of("ftd", iterations=iterations, image_ema=0.0)
        own = dataclasses.replace(task, work_dir=tmp_path / str(iterations))
        shown[iterations] = distil(method, own).images
    average = shown[0]
    for iterations in range(1, 5):
        average = 0.9 * average + 0.1 * shown[iterations]
    found = distil(method_of("ftd", iterations=4), dataclasses.replace(task, work_dir=tmp_path))
    torch.testing.assert_close(found.images, average)


def test_methods_share_flat_experts(task):
    assert method_of("ftd").parts(task) != method_of("datm").parts(task)
    flat = method_of("datm", rho=0.1)
    assert method_of("ftd").parts(task) == flat.parts(task)


# DATM.


class Known:
    """A network whose weights are its answers: for image number i the i-th row."""

    def __call__(self, theta, images):
        return theta[images.flatten(1)[:, 0].round().long()]


def numbered(task, labels):
    """A task whose images hold their own numbers."""
    numbers = torch.arange(len(labels)).float().view(-1, 1, 1, 1)
    return dataclasses.replace(
        task, images=numbers.expand(-1, 1, 2, 2), labels=torch.tensor(labels), num_classes=2
    )


def experts_of(*answers):
    rows = [F.one_hot(torch.tensor(answer), 2).float() for answer in answers]
    return Experts(Known(), torch.nn.Identity(), [lambda row=row: row for row in rows])


def test_the_first_experts_images_come_first_and_what_nobody_knows_last(task):
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    task = numbered(task, labels)
    first, second = [0, 1, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0, 0, 1]
    experts = experts_of(first, second)
    for seed in range(5):
        source = torch.Generator().manual_seed(seed)
        where, missing = experts.correct_images(task, 2, source)
        # The first knows 0, 6 and 7, the second 1 as well.
        assert set(where[:2].tolist()) == {0, 1}
        assert set(where[2:].tolist()) == {6, 7}
        assert missing == 0
        where, missing = experts.correct_images(task, 3, source)
        assert set(where[:2].tolist()) == {0, 1}
        assert where[2].item() in {2, 3}
        assert len(set(where.tolist())) == 6
        assert missing == 2


def test_the_order_of_known_images_is_drawn(task):
    task = numbered(task, [0] * 20 + [1] * 20)
    experts = experts_of([0] * 20 + [1] * 20)
    drawn = {
        tuple(experts.correct_images(task, 2, torch.Generator().manual_seed(s))[0].tolist())
        for s in range(5)
    }
    assert len(drawn) == 5


def test_labels_start_from_those_experts_that_are_right_and_else_from_the_fallback():
    logits = torch.tensor(
        [[[3.0, 1.0], [0.0, 1.0], [5.0, 0.0]], [[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]]
    )
    images = torch.arange(3.0).view(3, 1, 1, 1)
    experts = Experts(Known(), torch.nn.Identity(), [lambda k=k: logits[k] for k in range(2)])
    fallback = torch.full((3, 2), 9.0)
    found = experts.mean_logits(images, torch.tensor([0, 1, 1]), fallback)
    # Both are right on the first image, the first expert on the second, nobody on the third.
    assert found.tolist() == [[2.0, 0.5], [0.0, 1.0], [9.0, 9.0]]
    assert torch.equal(experts.first_logits(images), logits[0])


def test_datms_set_starts_from_images_its_experts_know_with_their_labels(tmp_path):
    task = digits_task(tmp_path, per_class=24)
    method = prepared(method_of("datm", iterations=0, expert_batch=8, start_epochs=4), task)
    made = method.distill(task, RecordingReporter())
    stored = ExpertStore(task, method.recipe(task)).load(2)
    network = FlatNetwork(task.network(0))
    answers = [network(stored.at(k, stored.epochs), made.images).detach() for k in range(2)]
    hard = torch.arange(4).repeat_interleave(2)
    right = [answer.argmax(1) == hard for answer in answers]
    assert (right[0] | right[1]).all()
    total = sum(a * r.unsqueeze(1) for a, r in zip(answers, right, strict=True))
    mean = total / (right[0].float() + right[1].float()).unsqueeze(1)
    torch.testing.assert_close(made.labels, mean.softmax(1), rtol=1e-4, atol=1e-5)


def test_the_log_says_how_many_images_no_expert_knows(task):
    reporter = RecordingReporter()
    distil(method_of("datm", expert_lr=1e-6), task, reporter)
    assert any("no expert classifies" in note and "train the experts" in note
               for note in reporter.notes)  # fmt: skip


@pytest.mark.parametrize(
    ("low", "first", "growth", "expected"),
    [
        (0, 0, 0, [(0, 6)] * 5),
        (0, 2, 4, [(0, 2), (0, 3), (0, 4), (0, 5), (0, 6)]),
        (1, 2, 2, [(1, 2), (1, 4), (1, 6), (1, 6), (1, 6)]),
        (3, 9, 4, [(3, 6)] * 5),
    ],
)
def test_students_start_in_a_window_that_grows(task, low, first, growth, expected):
    size = FlatNetwork(task.network(0)).size
    stored = Trajectories([torch.randn(8, size)], task.device)
    config = MTT.Config(**SMALL | {"start_epochs": 6})
    rules = Rules(min_start_epoch=low, first_start_epochs=first, growth_iterations=growth)
    matcher = TrajectoryMatcher(config, task, stored, rules=rules)
    images, _ = matcher.initial_images()
    found = []
    for iteration in range(5):
        epochs = set()
        for seed in range(60):
            matcher.seeds = dataclasses.replace(matcher.seeds, base=seed)
            epochs.add(matcher._steps(iteration, images)[1])
        found.append((min(epochs), max(epochs) + 1))
    assert found == expected


def test_an_iteration_above_the_limit_moves_nothing_and_its_momentum_neither(tmp_path):
    task = digits_task(tmp_path)
    settings = {"image_optimiser": "sgd", "iterations": 8, "alpha_optimiser": "sgd"}

    def made(name, **changes):
        reporter = RecordingReporter()
        own = dataclasses.replace(task, work_dir=tmp_path / name)
        return distil(method_of("datm", **settings | changes), own, reporter), reporter.values

    start, _ = made("start", iterations=0)
    none, values = made("none", loss_limit=1e-9)
    assert values["moved"] == [0.0] * 8
    assert torch.equal(none.images, start.images)
    assert torch.equal(none.labels, start.labels)
    assert none.learning_rate == start.learning_rate
    limit = min(values["loss"]) * 1.0001
    some, values = made("some", loss_limit=limit)
    assert values["moved"] == [float(loss <= limit) for loss in values["loss"]]
    assert sum(values["moved"]) > 0
    assert not torch.equal(some.images, start.images)


def test_datm_without_learned_labels_has_hard_ones(task):
    made = distil(method_of("datm", learn_labels=False), task)
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_experts_are_trained_as_far_as_labels_ask(task):
    assert method_of("datm").recipe(task).epochs == 2
    assert method_of("datm", label_epoch=1).recipe(task).epochs == 2
    assert method_of("datm", label_epoch=7).recipe(task).epochs == 7


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"min_start_epoch": 20}, "min_start_epoch 20 leaves no epoch"),
        ({"min_start_epoch": 10}, r"must be below start_epochs and first_start_epochs \(10\)"),
        ({"label_momentum": 1.0}, "label_momentum"),
        ({"loss_limit": 0.0}, "loss_limit"),
        ({"label_epoch": -2}, "label_epoch"),
        ({"rho": -0.1}, "rho"),
        ({"image_ema": 1.0}, "image_ema"),
    ],
)
def test_values_of_datm_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        DATM.Config(**bad)


# TESLA.


def direct_gradient(p, steps):
    """TESLA's formula, the trajectory detached: step by step, in float64."""
    theta, gradients, thetas = p.start, [], []
    for step in steps:
        leaf = theta.detach().requires_grad_()
        x = p.images if step.index is None else p.images[step.index]
        y = p.labels if step.index is None else p.labels[step.index]
        loss = F.cross_entropy(p.network(leaf, x), y)
        gradients.append(torch.autograd.grad(loss, leaf)[0])
        thetas.append(theta)
        theta = theta - p.alpha * gradients[-1]
    scale = (p.start - p.target).square().sum()
    total = sum(gradients)
    aim = p.target - p.start + p.alpha * total
    images = p.images.clone().requires_grad_()
    value = 0.0
    for theta_i, step in zip(thetas, steps, strict=True):
        leaf = theta_i.detach().requires_grad_()
        x = images if step.index is None else images[step.index]
        y = p.labels if step.index is None else p.labels[step.index]
        loss = F.cross_entropy(p.network(leaf, x), y)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        value = value + 2 * p.alpha / scale * (gradient @ aim)
    alpha = 2 / scale * (total @ aim)
    return torch.autograd.grad(value, images)[0], alpha


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("batch", [None, 4])
def test_the_direct_gradient_is_teslas_formula(soft, batch):
    p = problem(soft=soft)
    source = torch.Generator().manual_seed(1)
    steps = [
        Step(None if batch is None else torch.randperm(len(p.images), generator=source)[:batch])
        for _ in range(6)
    ]
    found = adjoint_gradients(*p.arguments(), steps, direct=True)
    images, alpha = direct_gradient(p, steps)
    assert relative(found.images, images) < 1e-10
    assert relative(found.alpha, alpha) < 1e-10
    exact = unrolled_gradients(*p.arguments(), steps)
    assert relative(found.loss, exact.loss) < 1e-12
    assert relative(found.images, exact.images) > 1e-3


def test_what_it_leaves_out_are_the_products_with_the_hessians_of_later_steps():
    p = problem()
    steps = [Step()] * 3
    direct = adjoint_gradients(*p.arguments(), steps, direct=True)
    exact = adjoint_gradients(*p.arguments(), steps)

    def gradient_at(theta, images):
        leaf = theta if theta.requires_grad else theta.detach().requires_grad_()
        loss = F.cross_entropy(p.network(leaf, images), p.labels)
        return torch.autograd.grad(loss, leaf, create_graph=True)[0]

    thetas = [p.start]
    for _ in steps:
        thetas.append(thetas[-1] - p.alpha * gradient_at(thetas[-1], p.images).detach())
    scale = (p.start - p.target).square().sum()
    lam = 2 * (thetas[-1] - p.target) / scale
    vectors = [lam]
    for theta in reversed(thetas[1:-1]):  # lambda_i = (I - alpha H_i) lambda_{i+1}
        leaf = theta.detach().requires_grad_()
        hessian = torch.autograd.grad(gradient_at(leaf, p.images), leaf, vectors[0])[0]
        vectors.insert(0, vectors[0] - p.alpha * hessian)
    missing = torch.zeros_like(p.images)
    for theta, vector in zip(thetas, vectors, strict=False):
        images = p.images.clone().requires_grad_()
        mixed = torch.autograd.grad(gradient_at(theta, images), images, vector - lam)[0]
        missing -= p.alpha * mixed
    assert relative(direct.images + missing, exact.images) < 1e-9


def test_for_one_step_teslas_gradient_is_exact():
    p = problem()
    direct = adjoint_gradients(*p.arguments(), [Step()], direct=True)
    exact = adjoint_gradients(*p.arguments(), [Step()])
    assert relative(direct.images, exact.images) < 1e-12
    assert relative(direct.alpha, exact.alpha) < 1e-12


def test_with_one_student_step_tesla_is_mtt(tmp_path):
    task = digits_task(tmp_path)
    changes = SMALL | {"student_steps": 1}
    one = distil(MTT(MTT.Config(**changes)), task)
    two = distil(TESLA(TESLA.Config(**changes)), dataclasses.replace(task, work_dir=tmp_path / "t"))
    assert torch.equal(one.images, two.images)
    more = distil(method_of("tesla"), dataclasses.replace(task, work_dir=tmp_path / "n"))
    plain = distil(MTT(MTT.Config(**SMALL)), dataclasses.replace(task, work_dir=tmp_path / "m"))
    assert not torch.equal(more.images, plain.images)


def test_assigned_labels_are_the_last_target_networks(tmp_path):
    task = digits_task(tmp_path)
    settings = {"iterations": 1, "image_lr": 1e-12}
    method = prepared(method_of("tesla, labels", **settings), task)
    made = method.distill(task, RecordingReporter())
    stored = ExpertStore(task, method.recipe(task)).load(2)
    matcher = TrajectoryMatcher(method.config, task, stored, rules=method.rules())
    images, _ = matcher.initial_images()
    expert, epoch, _ = matcher._steps(0, images)
    target = stored.at(expert, epoch + method.config.match_epochs)
    expected = FlatNetwork(task.network(0))(target, made.images).softmax(1)
    torch.testing.assert_close(made.labels, expected, rtol=1e-4, atol=1e-5)


def test_labels_are_assigned_or_learned_but_not_both():
    with pytest.raises(ValueError, match="teacher_labels and learn_labels exclude each other"):
        TESLA.Config(teacher_labels=True, learn_labels=True)


def test_no_limit_is_the_plain_step(task):
    assert math.isinf(method_of("datm", loss_limit=1e38).rules().loss_limit)
