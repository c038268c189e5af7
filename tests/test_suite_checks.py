"""The checks that compare attacks: which examples they look at, and where they draw the line."""

import dataclasses
from functools import cache

import pytest
import torch
from attack_models import make_attack, trained_network

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation import sanity, suite_checks
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_student

HEADLINE = ThreatModel("Linf", 0.1)
BATCH = 64


@cache
def recorded(steps=20, step_size=None):
    task = trained_network()
    attack = make_attack("pgd", steps=steps, step_size=step_size)
    clean = classified(task.model, task.images, task.labels, BATCH)
    outcome = attack_student(
        task.model, task.images, task.labels, attack, HEADLINE, 0, BATCH, clean, name="pgd"
    )
    return attack, clean, outcome


def bits(text):
    return torch.tensor([character == "1" for character in text])


def outcome(attack, text, eps=0.1, tried=None):
    robust = bits(text)
    return dataclasses.replace(
        recorded()[2],
        attack=attack,
        robust=robust,
        tried=torch.ones_like(robust) if tried is None else tried,
        threat=ThreatModel("Linf", eps),
    )


def more_steps(attack, outcomes, clean, count=120):
    task = trained_network()
    return suite_checks.check_more_steps(
        task.model, task.images[:count], task.labels[:count], attack, "pgd", HEADLINE, outcomes,
        clean, 1, BATCH,
    )  # fmt: skip


def test_an_attack_that_has_converged_passes():
    attack, clean, found = recorded()
    check = more_steps(attack, [found], clean)
    assert check.passed
    assert "with 20 steps" in check.evidence
    assert "with 40" in check.evidence


def test_an_attack_that_was_stopped_too_early_is_flagged():
    attack, clean, found = recorded(steps=2, step_size=0.02)
    assert not more_steps(attack, [found], clean).passed


def test_only_the_first_examples_that_the_attack_was_run_on_are_run_again():
    attack, clean, found = recorded()
    on = torch.arange(120) % 3 == 0

    def tried(mask):
        return [dataclasses.replace(found, tried=mask)]

    check = more_steps(attack, tried(on), clean, count=60)
    assert f"of {int((on & clean)[:60].sum())} examples" in check.evidence
    nowhere = torch.zeros(120, dtype=torch.bool)
    assert "run on none of 60" in more_steps(attack, tried(nowhere), clean, count=60).evidence


def test_an_attack_that_was_not_run_at_the_headline_is_refused():
    attack, clean, found = recorded()
    other = dataclasses.replace(found, threat=ThreatModel("Linf", 0.05))
    with pytest.raises(UsageError, match=r"no outcome of 'pgd' at the headline, eps 0\.1"):
        more_steps(attack, [other], clean)


def test_the_strongest_iterative_attack_has_gradients_steps_and_the_last_known_rank():
    noise, fgsm, pgd = (make_attack(name) for name in ("noise", "fgsm", "pgd"))
    assert suite_checks.strongest_iterative({"pgd": pgd, "noise": noise, "fgsm": fgsm}) == "pgd"
    assert suite_checks.strongest_iterative({"apgd-ce": pgd, "pgd": pgd, "other": pgd}) == "apgd-ce"
    assert suite_checks.strongest_iterative({"one": pgd, "two": pgd}) == "two"
    assert suite_checks.strongest_iterative({"noise": noise, "fgsm": fgsm}) is None


@pytest.mark.parametrize(("found", "passes"), [(4, True), (5, False)])
def test_a_gradient_free_attack_may_find_one_per_cent_and_three_deviations_more(found, passes):
    # 1 % of 200 is 2, and 2 + 3 sqrt(2) = 6.2; of 100: 1 + 3 = 4.
    free = outcome("square", "0" * found + "1" * (100 - found))
    guided = [outcome("fgsm", "1" * 100), outcome("pgd", "1" * 100)]
    check = suite_checks.check_gradient_free([*guided, free], bits("1" * 100), {"square"})
    assert check.passed is passes
    assert (
        check.evidence == f"eps 0.1: square breaks {found} that gradients left (at most 4 of 100)"
    )


def test_what_one_attack_with_gradients_breaks_is_not_held_against_the_others():
    free = outcome("square", "0" * 20 + "1" * 80)
    guided = [outcome("fgsm", "0" * 20 + "1" * 80), outcome("pgd", "1" * 100)]
    clean = bits("1" * 100)
    assert suite_checks.check_gradient_free([*guided, free], clean, {"square"}).passed
    assert not suite_checks.check_gradient_free([guided[1], free], clean, {"square"}).passed


def test_other_eps_and_missing_kinds_are_not_compared():
    free, clean = outcome("square", "0" * 100), bits("1" * 100)
    guided = outcome("pgd", "1" * 100, eps=0.05)
    check = suite_checks.check_gradient_free([guided, free], clean, {"square"})
    assert check.passed
    assert check.evidence == "no attack without gradients beside one with them"


def test_attacks_on_survivors_are_compared_where_both_were_run():
    first, last = bits("1" * 50 + "0" * 50), bits("0" * 50 + "1" * 50)
    weak = outcome("fgsm", "0" * 30 + "1" * 70)
    for tried, passes in ((None, False), (first, False), (last, True)):
        strong = outcome("pgd", "1" * 100, tried=tried)
        assert suite_checks.check_order([weak, strong]).passed is passes
    clean = bits("1" * 100)
    for guided, blind, passes in ((first, None, False), (last, None, True), (None, last, True)):
        strong = outcome("pgd", "1" * 100, tried=guided)
        free = outcome("square", "0" * 30 + "1" * 70, tried=blind)
        assert suite_checks.check_gradient_free([strong, free], clean, {"square"}).passed is passes


def test_suite_and_headline_come_together():
    task = trained_network()
    attack, clean, found = recorded()
    with pytest.raises(UsageError, match="suite and headline together"):
        sanity.check_student(
            task.model, task.images, task.labels, clean=clean, outcomes=[found],
            unconstrained=attack, seed=0, batch_size=BATCH, headline=HEADLINE,
        )  # fmt: skip
