"""What an attack claims is checked again; the worst case per example is what counts."""

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
from attack_models import linear_problem, make_attack, trained_network
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustdd_bench.attacks import Attack, AttackResult, ThreatModel
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.evaluation.outcomes import accuracy, pack_bits, unpack_bits, worst_case
from robustdd_bench.evaluation.perturbing import kinds_of_remark
from robustdd_bench.evaluation.prediction import frozen, other_batch_size, predict, right
from robustdd_bench.evaluation.robustness import attack_student, check_examples, tolerance

LINF = ThreatModel("Linf", 0.1)


class Scripted(Attack):
    """An attack that does what a test tells it."""

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, act):
        super().__init__(self.Config())
        self.act = act

    def perturb(self, task):
        moved = self.act(task.model, task.images, task.labels, task.threat, task.generator)
        return AttackResult(images=moved)


def scripted(act):
    return Scripted(lambda model, images, labels, threat, generator: act(images))


def cross_the_boundary(problem, length=10.0):
    """Perturbations far beyond the boundary of a linear problem, outside any small ball."""
    w = problem.model[1].weight[0].detach()
    side = (1 - 2.0 * problem.labels).view(-1, 1, 1, 1)
    return -side * length * (w / w.norm()).view(problem.images.shape[1:])


def run(problem, attack, threat=LINF, batch_size=5, **options):
    return attack_student(
        problem.model, problem.images, problem.labels, attack, threat, 0, batch_size, **options
    )


class Mode(nn.Module):
    """A linear model that tells in which state it was called."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.seen = []

    def forward(self, x):
        parameters = list(self.parameters())
        self.seen.append((self.training, any(p.requires_grad for p in parameters)))
        return self.linear(self.dropout(self.norm(x.flatten(1))))


def small_images(count=10):
    return torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def test_predict_gives_the_same_logits_at_every_batch_size():
    task = trained_network()
    whole = predict(task.model, task.images, 1000)
    assert whole.shape == (120, 10)
    assert not whole.requires_grad
    for batch_size in (1, 7, 120):
        torch.testing.assert_close(predict(task.model, task.images, batch_size), whole)


def test_predict_works_in_eval_mode_and_restores_each_module():
    model = Mode()
    model.dropout.eval()
    predict(model, small_images(), 3)
    assert model.seen == [(False, False)] * 4
    assert (model.training, model.dropout.training, model.norm.training) == (True, False, True)
    assert int(model.norm.num_batches_tracked) == 0


def test_frozen_restores_flags_even_after_an_error():
    model = Mode()
    model.linear.bias.requires_grad_(False)
    state = []

    def fail():
        with frozen(model):
            state.extend([model.training, *(p.requires_grad for p in model.parameters())])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not any(state)
    assert model.training
    assert model.linear.weight.requires_grad
    assert not model.linear.bias.requires_grad


def test_a_row_with_nan_is_never_right():
    logits = torch.tensor([[2.0, 1.0], [float("nan"), 1.0], [0.0, float("inf")]])
    assert right(logits, torch.tensor([0, 0, 1])).tolist() == [True, False, True]


@given(count=st.integers(2, 300), batch_size=st.integers(1, 300))
def test_the_check_cuts_the_examples_otherwise(count, batch_size):
    other = other_batch_size(count, batch_size)
    assert other >= 1
    assert min(other, count) != min(batch_size, count)


def test_the_student_is_frozen_while_it_is_attacked():
    model = Mode()
    images = small_images()
    labels = predict(model, images, 10).argmax(1)
    model.seen.clear()
    attack_student(model, images, labels, make_attack("pgd"), LINF, 0, 4)
    assert set(model.seen) == {(False, False)}
    assert model.training
    assert model.linear.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_pre_hooks


def test_only_examples_that_are_right_are_attacked():
    problem = linear_problem((1, 2, 2), "Linf")
    clean = torch.arange(16) % 4 == 0
    seen = []

    def act(model, images, labels, threat, generator):
        seen.extend(generator.index.tolist())
        assert torch.equal(images, problem.images[generator.index])
        assert torch.equal(labels, problem.labels[generator.index])
        return images

    outcome = run(problem, Scripted(act), batch_size=3, right_before=clean)
    assert seen == [0, 4, 8, 12]
    assert (outcome.attacked, outcome.broken) == (4, 0)
    assert torch.equal(outcome.robust, clean)


def test_a_student_that_is_always_wrong_is_not_attacked_at_all():
    problem = linear_problem((1, 2, 2), "Linf")
    outcome = attack_student(
        problem.model, problem.images, 1 - problem.labels, make_attack("pgd"), LINF, 0, 4
    )
    assert (outcome.attacked, outcome.broken, outcome.forwards) == (0, 0, 0)
    assert not outcome.robust.any()


def test_outcome_says_what_was_done():
    problem = linear_problem((1, 2, 2), "Linf")
    outcome = run(problem, make_attack("pgd", steps=4), ThreatModel("Linf", problem.eps))
    assert (outcome.attack, outcome.plugin) == ("PGD", "robustdd_attacks")
    assert outcome.threat == ThreatModel("Linf", problem.eps)
    assert (outcome.seed, outcome.batch_size, outcome.verify_batch_size) == (0, 5, 2)
    assert (outcome.attacked, outcome.broken) == (16, 8)
    assert outcome.forwards == 16 * 5
    assert outcome.robust.dtype == torch.bool
    assert outcome.robust.device.type == "cpu"


def test_an_attack_may_write_into_the_images_it_is_given():
    problem = linear_problem((1, 2, 2), "Linf")
    before = problem.images.clone()
    outcome = run(problem, scripted(lambda images: images.zero_()))
    assert torch.equal(problem.images, before)
    assert outcome.violations.outside_ball == 16
    assert outcome.broken == 0


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_examples_outside_the_ball_break_nothing_and_are_counted(norm):
    problem = linear_problem((1, 4, 4), norm)
    step = cross_the_boundary(problem, 0.3)
    indices = []

    def act(model, images, labels, threat, generator):
        indices.extend(generator.index.tolist())
        return (images + step[generator.index]).clamp(0, 1)

    outcome = run(problem, Scripted(act), ThreatModel(norm, 0.05))
    assert indices == list(range(16))
    assert (outcome.violations.outside_ball, outcome.violations.examples) == (16, 16)
    assert outcome.violations.outside_box == outcome.violations.not_finite == 0
    assert outcome.broken == 0
    assert outcome.robust.all()
    assert run(problem, Scripted(act), ThreatModel(norm, 0.31)).broken == 16


def test_examples_outside_the_box_break_nothing_and_are_counted():
    problem = linear_problem((1, 4, 4), "Linf")
    step = cross_the_boundary(problem)

    def act(model, images, labels, threat, generator):
        return images + step[generator.index]

    outcome = run(problem, Scripted(act), ThreatModel("Linf", 100.0))
    assert (outcome.violations.outside_box, outcome.violations.outside_ball) == (16, 0)
    assert outcome.broken == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_break_nothing_and_are_counted_once(value):
    problem = linear_problem((1, 4, 4), "Linf")

    def act(images):
        images[0, 0, 0, 0] = value
        return images

    outcome = run(problem, scripted(act), batch_size=8)
    found = outcome.violations
    assert (found.not_finite, found.outside_box, found.outside_ball, found.examples) == (2, 0, 0, 2)
    assert outcome.broken == 0


def test_rounding_is_no_violation_but_more_is():
    problem = linear_problem((1, 4, 4), "Linf")
    arguments = (problem.model, problem.images)
    for excess, expected in ((0.5, 0), (3.0, 16)):
        moved = problem.images + 0.1 + excess * tolerance(torch.float32, 0.1)
        _, found = check_examples(*arguments, moved, problem.labels, LINF, 7)
        assert found.outside_ball == expected
    assert tolerance(torch.float32, 0.1) < 1e-6
    assert tolerance(torch.float64, 0.1) < 1e-14


def test_a_claim_holds_only_if_a_fresh_pass_agrees():
    problem = linear_problem((1, 4, 4), "Linf")
    broken, found = check_examples(
        problem.model, problem.images, problem.images.clone(), problem.labels, LINF, 3
    )
    assert not broken.any()
    assert found.examples == 0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda images: images[:, :, :1], "shape"),
        (lambda images: images.double(), "float64"),
        (lambda images: None, "NoneType"),
        (lambda images: (images, images), "tuple"),
        (lambda images: 1 // 0, "ZeroDivisionError"),
        (lambda images: "images", "returned str"),
    ],
)
def test_a_failing_attack_is_named_with_its_plugin(act, message):
    problem = linear_problem((1, 2, 2), "Linf")
    problem.model.train()
    with pytest.raises(PluginError) as caught:
        run(problem, scripted(act), name="bad", plugin="stranger")
    assert "attack 'bad' of plugin 'stranger'" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert problem.model.training
    assert all(parameter.requires_grad for parameter in problem.model.parameters())
    assert not problem.model._forward_pre_hooks


def test_an_attack_that_changes_the_student_is_refused():
    problem = linear_problem((1, 2, 2), "Linf")

    def act(model, images, labels, threat, generator):
        model[1].bias.add_(1)
        return images

    with pytest.raises(PluginError, match=r"changed the student's weights \(1\.bias\)"):
        run(problem, Scripted(act))


def test_a_student_of_nan_is_not_blamed_on_the_attack():
    problem = linear_problem((1, 2, 2), "Linf")
    model = copy.deepcopy(problem.model)
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    clean = torch.ones(16, dtype=torch.bool)
    outcome = attack_student(
        model, problem.images, problem.labels, make_attack("fgsm"), LINF, 0, 4, clean
    )
    assert outcome.broken == 16


def test_an_attack_that_uses_the_global_generator_leaves_it_as_it_was():
    problem = linear_problem((1, 2, 2), "Linf")
    before = torch.random.get_rng_state()
    results = []

    def act(images):
        results.append(torch.rand(3))
        torch.manual_seed(0)
        return images

    run(problem, scripted(act), batch_size=16)
    run(problem, scripted(act), batch_size=16)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(results[0], results[1])


def test_a_targeted_threat_model_is_refused():
    problem = linear_problem((1, 2, 2), "Linf")
    with pytest.raises(UsageError, match="untargeted"):
        run(problem, make_attack("pgd"), ThreatModel("Linf", 0.1, targeted=True))


def bits(text):
    return torch.tensor([character == "1" for character in text])


def test_worst_case_is_taken_per_example_over_attacks_and_smaller_eps():
    outcomes = {
        ("a", 0.1): bits("11101"),
        ("b", 0.1): bits("11110"),
        ("a", 0.2): bits("10111"),
        ("b", 0.2): bits("11111"),
        ("a", 0.05): bits("11111"),
    }
    worst = worst_case(outcomes, bits("01111"), [0.1, 0.2])
    assert {eps: "".join(str(int(b)) for b in found) for eps, found in worst.items()} == {
        0.1: "01100",
        0.2: "00100",
    }


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.sampled_from([0.1, 0.2, 0.3])),
        st.lists(st.booleans(), min_size=6, max_size=6),
        min_size=1,
    ),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_accuracy_never_rises_with_eps_nor_above_clean(table, clean):
    outcomes = {key: torch.tensor(value) for key, value in table.items()}
    ladder = sorted({eps for _, eps in outcomes})
    worst = worst_case(outcomes, torch.tensor(clean), ladder)
    assert list(worst) == ladder
    levels = [torch.tensor(clean), *worst.values()]
    for weaker, stronger in itertools.pairwise(levels):
        assert not (stronger & ~weaker).any()
    for (_, eps), found in outcomes.items():
        assert not (worst[eps] & ~found).any()


def test_worst_case_leaves_its_arguments_alone():
    clean, outcome = bits("111"), bits("011")
    worst_case({("a", 0.1): outcome}, clean, [0.1])
    assert torch.equal(clean, bits("111"))
    assert torch.equal(outcome, bits("011"))


def test_worst_case_refuses_a_rung_without_an_attack_and_other_lengths():
    with pytest.raises(UsageError, match=r"no attack was run at eps 0\.2"):
        worst_case({("a", 0.1): bits("11")}, bits("11"), [0.1, 0.2])
    with pytest.raises(UsageError, match="has 3 outcomes for 2 examples"):
        worst_case({("a", 0.1): bits("111")}, bits("11"), [0.1])


def test_accuracy_is_the_share_of_right_examples():
    assert accuracy(bits("1101")) == 0.75


@given(st.lists(st.booleans(), max_size=40))
def test_bits_survive_packing(values):
    original = torch.tensor(values, dtype=torch.bool)
    text = pack_bits(original)
    assert text.partition(":")[0] == str(len(values))
    assert torch.equal(unpack_bits(text), original)


def test_packed_bits_have_the_documented_form():
    assert pack_bits(bits("1000000001")) == "10:gEA="


@pytest.mark.parametrize(
    "text",
    ["", "gEA=", "10:", "10:gEA", "9:gEA=", "17:gEA=", "-1:", "10:gE*A=", "1e3:gEA=", "x:gEA=",
     "010:gEA=", "10:gEB=", "10:é", "9999999999999999999:gEA="],
)  # fmt: skip
def test_ill_formed_bits_are_refused(text):
    with pytest.raises(UsageError, match="not a bit mask"):
        unpack_bits(text)


def test_what_an_attack_says_of_its_result_is_kept_once_and_not_for_the_next_outcome():
    problem = linear_problem((1, 2, 2), "Linf")
    said = ["gradients vanish"]

    class Talks(Scripted):
        def perturb(self, task):
            return AttackResult(images=task.images, remarks=tuple(said))

    attack = Talks(None)
    assert run(problem, attack, batch_size=5).warnings == ("gradients vanish",)
    said.clear()
    assert run(problem, attack, batch_size=5).warnings == ()


def test_remarks_that_differ_in_their_numbers_alone_are_of_one_kind():
    remarks = ["3 points of 20 are flat", "another", "4 points of 2.5 are flat", "another"]
    assert kinds_of_remark(remarks) == ("3 points of 20 are flat", "another")


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda task: task.images, "perturb returned Tensor, not an AttackResult"),
        (lambda task: None, "perturb returned NoneType, not an AttackResult"),
        (lambda task: AttackResult(images=[1]), "perturb returned list, not a tensor"),
    ],
)
def test_what_is_no_result_of_an_attack_is_refused(returned, words):
    class Returns(Scripted):
        def perturb(self, task):
            return returned(task)

    with pytest.raises(PluginError, match=words):
        run(linear_problem((1, 2, 2), "Linf"), Returns(None))


def test_an_attack_that_cannot_be_used_so_is_a_wrong_call_that_names_it():
    problem = linear_problem((1, 2, 2), "Linf")

    def act(images):
        raise UsageError("only L2")

    with pytest.raises(UsageError, match=r"attack 'Scripted' of plugin .*: only L2"):
        run(problem, scripted(act))
