"""Models that fool an evaluation are flagged, each by the check made for it; honest ones pass."""

import copy
import dataclasses
from functools import cache

import pytest
import torch
from attack_models import make_attack, shipped_order, trained_network
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import Violations, attack_student
from robustdd_bench.evaluation.sanity import student_checks as sanity
from robustdd_bench.evaluation.sanity import suite_checks

LADDER = (0.05, 0.1)
BATCH = 64


class Wrapped(nn.Module):
    """The trained network with something around it."""

    def __init__(self, before=nn.Identity(), after=nn.Identity()):  # noqa: B008
        super().__init__()
        self.before, self.network, self.after = (
            before,
            copy.deepcopy(trained_network().model),
            after,
        )

    def forward(self, x):
        return self.after(self.network(self.before(x)))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Stubborn(nn.Dropout):
    """Dropout that stays on in eval mode."""

    def train(self, mode=True):
        return super().train(True)


def noisy(scale):
    generator = torch.Generator().manual_seed(0)
    return Function(lambda x: x + scale * torch.randn(x.shape, generator=generator))


def examine(model):
    task = trained_network()
    clean = classified(model, task.images, task.labels, BATCH)
    outcomes = [
        attack_student(
            model,
            task.images,
            task.labels,
            make_attack(name),
            ThreatModel("Linf", eps),
            0,
            BATCH,
            clean,
            name=name,
        )
        for name in ("noise", "fgsm", "pgd")
        for eps in LADDER
    ]
    return sanity.check_student(
        model,
        task.images,
        task.labels,
        clean=clean,
        outcomes=outcomes,
        unconstrained=make_attack("pgd", steps=40),
        seed=0,
        batch_size=BATCH,
        strength=shipped_order(),
    )


def flagged(model):
    return {check.name for check in examine(model) if not check.passed}


@cache
def honest_outcomes():
    task = trained_network()
    return tuple(
        attack_student(
            task.model,
            task.images,
            task.labels,
            make_attack(name),
            ThreatModel("Linf", 0.1),
            0,
            BATCH,
            name=name,
        )
        for name in ("noise", "fgsm", "pgd")
    )


def test_a_plain_network_passes_every_check_with_evidence():
    checks = examine(Wrapped())
    assert [check for check in checks if not check.passed] == []
    assert len({check.name for check in checks}) == len(checks) == 9
    assert all(check.evidence and "\n" not in check.evidence for check in checks)


def test_log_probabilities_are_logits():
    assert flagged(Wrapped(after=nn.LogSoftmax(1))) == set()


def test_outputs_that_are_not_finite_are_flagged():
    broken = Wrapped(after=Function(lambda z: torch.where(z > 0, z, torch.nan)))
    assert "outputs are logits" in flagged(broken)


@pytest.mark.parametrize("scale", [0.001, 0.05])
def test_a_noise_layer_is_flagged(scale):
    assert "deterministic forward" in flagged(Wrapped(before=noisy(scale)))


def test_a_student_cut_off_from_its_pixels_is_flagged_not_a_crash():
    model = Wrapped(before=Function(torch.Tensor.detach))
    task = trained_network()
    check = sanity.check_gradient(model, task.images, task.labels)
    assert not check.passed
    assert "no gradient reaches the pixels" in check.evidence
    check = sanity.check_unconstrained(
        model, task.images, task.labels, make_attack("pgd"), 0, BATCH
    )
    assert not check.passed
    assert "robustdd_attacks" in check.evidence


def test_a_constant_student_is_flagged():
    constant = Wrapped(after=Function(lambda z: 0 * z + torch.arange(10)))
    assert {"input gradient", "unconstrained attack succeeds"} <= flagged(constant)


def test_dropout_that_ignores_eval_mode_is_flagged():
    found = flagged(Wrapped(before=Stubborn(0.2)))
    assert {"eval mode", "deterministic forward"} <= found


def test_a_student_handed_over_in_train_mode_is_not_flagged():
    model = Wrapped(before=nn.Dropout(0.5))
    model.train()
    assert sanity.check_eval_mode(model).passed
    assert model.training


def test_statistics_of_the_batch_are_flagged():
    centred = Wrapped(before=Function(lambda x: x - 2 * x.mean(0, keepdim=True)))
    assert "clean accuracy reproduces" in flagged(centred)


def test_recorded_bits_that_are_wrong_are_flagged_but_not_ties():
    task = trained_network()
    clean = classified(task.model, task.images, task.labels, BATCH)
    arguments = (task.images, task.labels)
    assert sanity.check_reproduces(task.model, *arguments, clean, BATCH).passed
    wrong = clean.clone()
    wrong[3] = ~wrong[3]
    check = sanity.check_reproduces(task.model, *arguments, wrong, BATCH)
    assert not check.passed
    assert check.evidence.startswith("1 of 120 outcomes differ")
    tied = Wrapped(after=Function(lambda z: z * 0 + 1 + 1e-6 * z))
    flipped = ~classified(tied, task.images, task.labels, BATCH)
    assert sanity.check_reproduces(tied, *arguments, flipped, BATCH).passed


def test_violations_are_flagged_and_named():
    noise, fgsm, pgd = honest_outcomes()
    assert sanity.check_violations([noise, fgsm, pgd]).passed
    bad = dataclasses.replace(fgsm, violations=Violations(1, 2, 3, 5))
    check = sanity.check_violations([noise, bad, pgd])
    assert not check.passed
    assert check.evidence == (
        "fgsm at eps 0.1: 5 examples (1 not finite, 2 outside [0,1], 3 outside the ball)"
    )


def with_bits(outcome, attack, text):
    robust = torch.tensor([character == "1" for character in text])
    tried = torch.ones_like(robust)
    return dataclasses.replace(outcome, attack=attack, robust=robust, tried=tried)


def test_a_weaker_attack_that_leads_clearly_is_flagged():
    reference = honest_outcomes()[0]
    weak = with_bits(reference, "noise", "0" * 10 + "1" * 90)
    strong = with_bits(reference, "pgd", "1" * 100)
    check = suite_checks.check_order([strong, weak], shipped_order())
    assert not check.passed
    assert check.evidence == "eps 0.1: accuracy 0.9000 under noise and 1.0000 under pgd"
    assert suite_checks.check_order(
        [with_bits(weak, "pgd", "0" * 10 + "1" * 90), weak], shipped_order()
    ).passed


@pytest.mark.parametrize(("only_weak", "passes"), [(0, True), (9, True), (10, False)])
def test_a_lead_within_chance_is_not_flagged(only_weak, passes):
    reference = honest_outcomes()[0]
    weak = with_bits(reference, "fgsm", "0" * only_weak + "1" * (100 - only_weak))
    strong = with_bits(reference, "pgd", "1" * 100)
    assert suite_checks.check_order([weak, strong], shipped_order()).passed is passes


def test_attacks_are_compared_at_the_same_eps_only():
    reference = honest_outcomes()[0]
    weak = with_bits(reference, "noise", "0" * 100)
    strong = dataclasses.replace(
        with_bits(reference, "pgd", "1" * 100), threat=ThreatModel("Linf", 0.05)
    )
    assert suite_checks.check_order([weak, strong], shipped_order()).passed


def test_robust_examples_that_were_wrong_before_are_flagged():
    outcomes = honest_outcomes()
    task = trained_network()
    clean = classified(task.model, task.images, task.labels, BATCH)
    assert sanity.check_consistent(outcomes, clean).passed
    check = sanity.check_consistent(outcomes, torch.zeros_like(clean))
    assert not check.passed
    assert "pgd at eps 0.1" in check.evidence
    assert not sanity.check_consistent(outcomes, clean[:-1]).passed


def test_checks_leave_the_student_as_it_was():
    task = trained_network()
    examine(task.model)
    assert not task.model.training
    assert all(p.requires_grad and p.grad is None for p in task.model.parameters())


def test_the_harness_imports_no_attack():
    import subprocess
    import sys

    code = (
        "import sys, robustdd_bench.evaluation.sanity.student_checks;"
        "import robustdd_bench.evaluation.robustness;"
        "print([m for m in sys.modules if m.startswith('robustdd_attacks')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_plugin_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, robustdd_attacks; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
