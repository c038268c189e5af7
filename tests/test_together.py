"""Students attacked together fare as they do one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from attack_models import RowNetwork, make_attack, trained_network
from torch import nn

from robustdd_bench.attacks import Attack, AttackResult, RoutedModel, ThreatModel, rows
from robustdd_bench.errors import PluginError
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_student, attack_students
from robustdd_bench.evaluation.together import Students, layout_for
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.seeds import isolated_rng

THREAT = ThreatModel("Linf", 0.1)


def students(count=3, dtype=torch.float64):
    """Networks that differ, and images of which each gets another part right."""
    networks = []
    for r in range(count):
        with isolated_rng(r):
            networks.append(convnet((1, 8, 8), 10, depth=2, width=4).to(dtype).eval())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(23, 1, 8, 8, generator=generator, dtype=dtype)
    labels = torch.stack([n(images).argmax(1) for n in networks]).mode(0).values
    return networks, images, labels


@pytest.mark.parametrize("layout", ["loop", "vmap"])
@pytest.mark.parametrize("owner", [[0, 0, 1, 2], [2, 0, 1, 0, 2, 2, 1], [1], [], [2, 2, 2]])
def test_each_row_is_answered_by_the_student_it_belongs_to(layout, owner) -> None:
    networks, images, _ = students()
    owner = torch.tensor(owner, dtype=torch.int64)
    x = images[: len(owner)].requires_grad_()
    found = Students(networks, layout).rows(owner)(x)
    assert found.shape == (len(owner), 10)
    for b, r in enumerate(owner.tolist()):
        torch.testing.assert_close(found[b], networks[r](x[b : b + 1])[0])
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    for b, r in enumerate(owner.tolist()):
        one = x[b : b + 1].detach().requires_grad_()
        (expected,) = torch.autograd.grad(networks[r](one).square().sum(), one)
        torch.testing.assert_close(gradient[b], expected[0])


@pytest.mark.parametrize("layout", ["loop", "vmap"])
def test_rows_can_be_left_out_repeated_and_reordered(layout) -> None:
    networks, images, _ = students()
    team = Students(networks, layout)
    model = team.rows(torch.tensor([0, 1, 2, 0, 1]))
    for keep in (torch.tensor([4, 0, 0, 2]), torch.tensor([False, True, True, False, True])):
        torch.testing.assert_close(
            rows(model, keep)(images[:5][keep]), model(images[:5])[keep], rtol=1e-12, atol=1e-12
        )
    assert team.forwards == [2 + 2 + 2, 2 + 1 + 2 + 2, 1 + 1 + 1 + 1]


def test_a_plain_network_is_its_own_selection() -> None:
    network = nn.Linear(2, 2)
    assert rows(network, torch.tensor([1])) is network


def test_a_batch_of_other_rows_is_refused_with_the_reason() -> None:
    networks, images, _ = students()
    model = Students(networks).rows(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="3 images for 2 rows: an attack with routed = True"):
        model(images[:3])


@pytest.mark.parametrize("layout", ["loop", "vmap"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("noise", {}), ("fgsm", {}), ("pgd", {"steps": 5}), ("pgd", {"steps": 3, "restarts": 3})],
)
@pytest.mark.parametrize("batch_size", [4, 100])
def test_students_fare_together_as_they_do_alone(layout, name, settings, batch_size) -> None:
    networks, images, labels = students()
    right = [classified(n, images, labels, 100) for n in networks]
    assert len({int(bits.sum()) for bits in right}) > 1
    attack = make_attack(name, **settings)
    threat = ThreatModel("Linf", 0.03)
    together = attack_students(
        networks, images, labels, attack, threat, [5, 6, 7], batch_size, right, layout=layout
    )
    fell = 0
    for network, seed, bits, found in zip(networks, [5, 6, 7], right, together, strict=True):
        alone = attack_student(network, images, labels, attack, threat, seed, batch_size, bits)
        assert torch.equal(found.robust, alone.robust)
        assert torch.equal(found.tried, alone.tried)
        assert (found.seed, found.violations) == (alone.seed, alone.violations)
        assert found.forwards == alone.forwards
        fell += found.broken
    assert 0 < fell < sum(int(bits.sum()) for bits in right)


def test_students_of_float32_fall_together_for_the_same_examples() -> None:
    task = trained_network()
    others = [copy.deepcopy(task.model) for _ in range(2)]
    for r, other in enumerate(others):
        with torch.no_grad():
            other[-1].bias += 0.3 * torch.randn(10, generator=torch.Generator().manual_seed(r))
    networks = [task.model, *others]
    right = [classified(n, task.images, task.labels, 64) for n in networks]
    for layout in ("loop", "vmap"):
        together = attack_students(
            networks, task.images, task.labels, make_attack("pgd"), THREAT, [1, 2, 3], 50, right,
            layout=layout,
        )  # fmt: skip
        for network, seed, found in zip(networks, [1, 2, 3], together, strict=True):
            alone = attack_student(
                network, task.images, task.labels, make_attack("pgd"), THREAT, seed, 50
            )
            assert int((found.robust != alone.robust).sum()) <= 1  # a tie in rounding


class Careless(Attack):
    """Says that it can attack students together, and forgets `rows`."""

    routed = True

    def __init__(self):
        super().__init__(None)

    def perturb(self, task):
        task.model(task.images[:1])
        return AttackResult(images=task.images)


def test_an_attack_that_forgets_rows_is_named() -> None:
    networks, images, labels = students()
    right = [torch.ones(len(images), dtype=torch.bool)] * 3
    with pytest.raises(PluginError, match=r"attack 'Careless' .* must|takes `rows\(model, keep\)`"):
        attack_students(networks, images, labels, Careless(), THREAT, [0, 0, 0], 10, right)


def test_an_attack_that_cannot_gets_one_student_at_a_time() -> None:
    networks, images, labels = students()
    seen = []

    class Plain(Careless):
        routed = False

        def perturb(self, task):
            seen.append(task.model)
            return AttackResult(images=task.images)

    right = [torch.ones(len(images), dtype=torch.bool)] * 3
    attack_students(networks, images, labels, Plain(), THREAT, [0, 0, 0], 100, right)
    for model, network in zip(seen, networks, strict=True):
        assert model is not network, "it gets a copy"
        assert all(map(torch.equal, model.parameters(), network.parameters()))
    assert not any(isinstance(model, RoutedModel) for model in seen)


def test_only_the_first_examples_are_tried_and_the_others_stand_as_before() -> None:
    problem_size = 23
    networks, images, labels = students()
    right = [torch.arange(problem_size) % 2 == 0] * 3
    outcomes = attack_students(
        networks, images, labels, make_attack("pgd"), ThreatModel("Linf", 0.5), [0, 1, 2], 10,
        right, examples=9,
    )  # fmt: skip
    for outcome in outcomes:
        assert outcome.tried.tolist() == [i < 9 and i % 2 == 0 for i in range(problem_size)]
        assert torch.equal(outcome.robust[9:], right[0][9:])
        assert outcome.broken == 5


def test_a_gpu_stacks_students_and_a_cpu_does_not() -> None:
    assert layout_for(torch.device("cpu")) == "loop"
    assert layout_for(torch.device("cuda")) == "vmap"


def test_row_network_has_parameters_to_stack() -> None:
    networks = [RowNetwork(4, 3, seed=r).eval() for r in range(2)]
    x = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    owner = torch.tensor([0, 1, 0, 1])
    found = [Students(networks, layout).rows(owner)(x) for layout in ("loop", "vmap")]
    torch.testing.assert_close(*found)
