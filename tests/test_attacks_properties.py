"""What every attack promises, whatever it does inside."""

import copy
import dataclasses
import itertools
import warnings

import pytest
import torch
from attack_models import (
    RowNetwork,
    Students,
    make_attack,
    perturb,
    quick_attack,
    registered_attacks,
    rng,
    task_of,
    trained_network,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import accuracy, worst_case
from robustdd_bench.evaluation.prediction import classified, frozen
from robustdd_bench.evaluation.robustness import attack_student, tolerance
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.seeds import ExampleGenerator

ATTACKS = sorted(registered_attacks())
NORMS = ["Linf", "L2"]
# So that examples leave between two rounds.
ROUNDS = {
    "pgd": {"restarts": 4, "steps": 3},
    "apgd-ce": {"restarts": 3, "steps": 5},
    "apgd-dlr": {"restarts": 3, "steps": 5},
    "apgd-t": {"targets": 3, "steps": 5},
    "square": {"restarts": 2, "queries": 20},
    "fab-t": {"targets": 2, "restarts": 2, "steps": 4},
    "jitter": {"restarts": 3, "steps": 3},
    "cw-linf": {"restarts": 3, "steps": 3},
    "spsa": {"queries": 120, "pairs": 4, "check_every": 2},
}
# An attack may wait for the device between two rounds only: here there is no more than one.
ONE_ROUND = {
    "apgd-t": {"targets": 1},
    "square": {"queries": 50},
    "deepfool": {"check_every": 0, "steps": 8},
    "fab-t": {"targets": 1, "steps": 3},
    "spsa": {"check_every": 0, "queries": 40, "pairs": 4},
}
HEADLINE = {"Linf": 0.1, "L2": 0.6}

each_attack = pytest.mark.parametrize("name", ATTACKS)
each_norm = pytest.mark.parametrize("norm", NORMS)


def each_case(*, batch_independent=False, routed=False):
    """Every attack with every norm it knows."""
    return pytest.mark.parametrize(
        ("name", "norm"),
        [
            (name, norm)
            for name, kind in sorted(registered_attacks().items())
            for norm in kind.norms
            if not (batch_independent and kind.batch_dependent) and not (routed and not kind.routed)
        ],
    )


UNTARGETED = {"deepfool", "autoattack"}


def row_problem(shape=(1, 4, 4), classes=4, count=24):
    model = RowNetwork(shape[0] * shape[1] * shape[2], classes)
    images = torch.rand(count, *shape, generator=rng(3), dtype=torch.float64)
    return model, images, model(images).argmax(1)


def test_the_plugin_registers_its_attacks():
    assert {"noise", "fgsm", "pgd", "mim", "apgd-ce", "apgd-dlr", "apgd-t", "square"} <= set(
        ATTACKS
    )
    assert {"deepfool", "cw", "ddn", "autoattack"} <= set(ATTACKS)
    entries = collect(get_plugin_manager()).entries["attacks"]
    assert all(entries[name].summary for name in ATTACKS)


@each_attack
def test_attack_has_a_frozen_configuration_with_defaults(name):
    kind = registered_attacks()[name]
    assert issubclass(kind, Attack)
    config = kind.Config()
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)


@each_case()
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(2, 5), st.integers(2, 5)),
    eps=st.sampled_from([0.0, 1e-4, 0.03, 0.3, 2.0]),
    count=st.integers(1, 6),
    edges=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)
def test_any_problem_gives_finite_examples_that_are_allowed_and_no_worse_than_the_image(
    name, norm, shape, eps, count, edges, seed
):
    model = RowNetwork(shape[0] * shape[1] * shape[2], 4, seed=seed)
    images = torch.rand(count, *shape, generator=rng(seed), dtype=torch.float64)
    images = images.round() if edges else images  # pixels of exactly 0 and 1
    labels = model(images).detach().argmax(1)
    threat = ThreatModel(norm, eps)
    found = perturb(quick_attack(name), model, images, labels, threat, seed=seed)
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert threat.distance(found, images).max() <= eps + tolerance(images.dtype, eps)
    if eps == 0:
        assert torch.equal(found, images)


@each_case()
def test_the_worst_case_over_a_ladder_never_rises_with_eps_nor_above_clean(name, norm):
    task = trained_network()
    clean = classified(task.model, task.images, task.labels, 120)
    ladder = [scale * HEADLINE[norm] for scale in (0.0, 0.5, 1.0, 2.0)]
    outcomes = {
        (name, eps): attack_student(
            task.model, task.images, task.labels, quick_attack(name), ThreatModel(norm, eps), 0, 120
        ).robust
        for eps in ladder
    }
    worst = list(worst_case(outcomes, clean, ladder).values())
    assert torch.equal(worst[0], clean)
    for smaller, larger in itertools.pairwise(worst):
        assert not (larger & ~smaller).any()
    assert worst[-1].sum() < clean.sum()


@each_case()
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("eps", [0.0, 0.03, 0.6, 3.0])
def test_examples_stay_in_the_ball_and_in_the_box(name, norm, targeted, eps):
    task = trained_network()
    images, labels = task.images[:40], task.labels[:40]
    if targeted:
        labels = (labels + 1) % 10
    threat = ThreatModel(norm, eps, targeted)
    if targeted and name in UNTARGETED:
        with pytest.raises(UsageError, match="no targeted version"):
            perturb(quick_attack(name), task.model, images, labels, threat)
        return
    found = perturb(quick_attack(name), task.model, images, labels, threat)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert not found.requires_grad
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    distance = threat.distance(found.double(), images.double())
    assert distance.max() <= eps + tolerance(images.dtype, eps)


@each_case()
def test_eps_zero_changes_nothing(name, norm):
    task = trained_network()
    found = perturb(
        quick_attack(name), task.model, task.images, task.labels, ThreatModel(norm, 0.0)
    )
    assert torch.equal(found, task.images)


@each_case()
def test_images_labels_and_model_stay_untouched(name, norm):
    task = trained_network()
    model = copy.deepcopy(task.model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels = task.images[:20].clone(), task.labels[:20].clone()
    perturb(quick_attack(name), model, images, labels, ThreatModel(norm, 0.1))
    assert torch.equal(images, task.images[:20])
    assert not images.requires_grad
    assert torch.equal(labels, task.labels[:20])
    assert not model.training
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
        assert torch.equal(parameter, before[key])


@each_case()
def test_attack_works_where_gradients_are_off_and_parameters_frozen(name, norm):
    task = trained_network()
    threat = ThreatModel(norm, HEADLINE[norm])
    arguments = (quick_attack(name), task.model, task.images[:30], task.labels[:30], threat)
    expected = perturb(*arguments)
    with torch.no_grad(), frozen(task.model):
        assert torch.equal(perturb(*arguments), expected)


@pytest.mark.parametrize(
    ("name", "norm", "options"),
    [
        (name, norm, options)
        for name, kind in sorted(registered_attacks().items())
        for norm in kind.norms
        for options in [{}, *([ROUNDS[name]] if name in ROUNDS else [])]
        if not kind.batch_dependent
    ],
)
def test_the_answer_does_not_depend_on_the_batch_bit_for_bit(name, norm, options):
    model, images, labels = row_problem()
    attack, threat = quick_attack(name, **options), ThreatModel(norm, 0.04)
    whole = perturb(attack, model, images, labels, threat)
    for batch_size, count in ((1, 4), (3, 9), (8, 24)):
        some = images[:count], labels[:count]
        found = perturb(attack, model, *some, threat, batch_size=batch_size)
        assert torch.equal(found, whole[:count])
    order = torch.randperm(len(images), generator=rng(1))
    shuffled = perturb(
        attack, model, images[order], labels[order], threat, batch_size=5, index=order
    )
    assert torch.equal(shuffled, whole[order])


@each_case(batch_independent=True, routed=True)
def test_students_attacked_together_get_what_each_gets_alone_bit_for_bit(name, norm):
    networks = [RowNetwork(16, 4, seed=seed) for seed in (0, 5, 9)]
    images = torch.rand(10, 1, 4, 4, generator=rng(3), dtype=torch.float64)
    attack = quick_attack(name, **ROUNDS.get(name, {}))
    threat = ThreatModel(norm, {"Linf": 0.04, "L2": 0.15}[norm])
    labels = [network(images).argmax(1) for network in networks]
    alone = [
        perturb(attack, network, images, truth, threat)
        for network, truth in zip(networks, labels, strict=True)
    ]
    broken = torch.stack(
        [network(x).argmax(1) for network, x in zip(networks, alone, strict=True)]
    ) != torch.stack(labels)
    assert 0 < broken.sum() < broken.numel()
    order = torch.randperm(30, generator=rng(4))
    owner, place = order // 10, order % 10
    found = attack.perturb(
        task_of(
            Students(networks, owner),
            images[place],
            torch.stack(labels)[owner, place],
            threat,
            ExampleGenerator(0, place),
        )
    ).images
    assert torch.equal(found, torch.stack(alone)[owner, place])


@each_case(batch_independent=True)
def test_outcome_does_not_depend_on_the_batch_size(name, norm):
    task = trained_network()
    threat = ThreatModel(norm, HEADLINE[norm])
    outcomes = [
        attack_student(task.model, task.images, task.labels, quick_attack(name), threat, 5, size)
        for size in (25, 32, 500)
    ]
    assert torch.equal(outcomes[0].robust, outcomes[1].robust)
    assert torch.equal(outcomes[0].robust, outcomes[2].robust)


@each_case()
def test_robust_implies_clean_and_no_rule_is_broken(name, norm):
    task = trained_network()
    clean = classified(task.model, task.images, task.labels, 120)
    for eps in (0.05, 0.2, 1.0):
        outcome = attack_student(
            task.model, task.images, task.labels, quick_attack(name), ThreatModel(norm, eps), 0, 120
        )
        assert not (outcome.robust & ~clean).any()
        assert outcome.violations.examples == 0


@each_case()
def test_a_large_eps_leaves_at_most_chance(name, norm):
    if not registered_attacks()[name].white_box:
        pytest.skip("it has no gradients to follow")
    task, eps = trained_network(), {"Linf": 0.5, "L2": 4.0}[norm]
    outcome = attack_student(
        task.model, task.images, task.labels, quick_attack(name), ThreatModel(norm, eps), 0, 120
    )
    assert accuracy(outcome.robust) <= 0.1


@each_norm
def test_stronger_attacks_break_more(norm):
    task = trained_network()
    left = [
        accuracy(
            attack_student(
                task.model,
                task.images,
                task.labels,
                make_attack(name, **config),
                ThreatModel(norm, HEADLINE[norm]),
                0,
                64,
            ).robust
        )
        for name, config in [("noise", {}), ("fgsm", {}), ("pgd", {}), ("pgd", {"restarts": 3})]
    ]
    assert left == sorted(left, reverse=True)
    assert left[0] > left[1] > left[2]


@each_case()
def test_a_model_of_nan_gives_no_nan_pixels(name, norm):
    class Diverged(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * float("nan")

    _, images, labels = row_problem(classes=3)
    found = perturb(quick_attack(name), Diverged(), images, labels, ThreatModel(norm, 0.1))
    assert found.isfinite().all()


@each_case()
def test_an_empty_batch_comes_back_empty(name, norm):
    model, images, labels = row_problem()
    found = perturb(quick_attack(name), model, images[:0], labels[:0], ThreatModel(norm, 0.1))
    assert found.shape == images[:0].shape


@each_case(routed=True)
def test_nothing_waits_for_the_device(name, norm):
    attack, threat = quick_attack(name, **ONE_ROUND.get(name, {})), ThreatModel(norm, 0.1)
    # Fake tensors hold no data: reading a value, or branching on one, raises.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = RowNetwork(16, 4)
        images, labels = torch.rand(5, 1, 4, 4, dtype=torch.float64), torch.arange(5) % 4
        generator = ExampleGenerator(0, torch.arange(5))
        found = attack.perturb(task_of(model, images, labels, threat, generator)).images
        assert found.shape == (5, 1, 4, 4)
        with pytest.raises(DataDependentOutputException):
            found.max().item()


@pytest.mark.gpu
@each_case(routed=True)
def test_nothing_waits_for_the_gpu(name, norm):
    attack, threat = quick_attack(name, **ONE_ROUND.get(name, {})), ThreatModel(norm, 0.1)
    model = RowNetwork(16, 4).cuda()
    images = torch.rand(5, 1, 4, 4, dtype=torch.float64, device="cuda")
    labels = torch.arange(5, device="cuda") % 4
    generator = ExampleGenerator(0, torch.arange(5, device="cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype, each time it is set
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = attack.perturb(task_of(model, images, labels, threat, generator)).images
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert found.shape == images.shape
