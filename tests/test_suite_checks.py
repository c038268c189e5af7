"""The checks that compare attacks: which examples they look at, and where they draw the line."""

import dataclasses
from functools import cache

import pytest
import torch
from attack_models import make_attack, shipped_order, trained_network

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.evaluation.sanity import student_checks as sanity
from robustdd_bench.evaluation.sanity import suite_checks

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


def test_the_strongest_iterative_attack_has_gradients_steps_and_no_stronger_one():
    noise, fgsm, pgd, apgd = (make_attack(name) for name in ("noise", "fgsm", "pgd", "apgd-ce"))
    dlr = make_attack("apgd-dlr")
    strongest = suite_checks.strongest_iterative
    assert strongest({"pgd": pgd, "noise": noise, "fgsm": fgsm}) == "pgd"
    assert strongest({"apgd-ce": apgd, "pgd": pgd, "apgd-dlr": dlr}) == "apgd-ce"
    assert strongest({"apgd-dlr": dlr, "other": Unordered(dlr.config)}) == "other"
    assert strongest({"noise": noise, "fgsm": fgsm}) is None


class Unordered(type(make_attack("apgd-dlr"))):
    pass


class Strangest(type(make_attack("apgd-ce"))):
    stronger_than = ("apgd-ce",)
    weaker_than = ()


def test_a_strangers_strongest_attack_takes_part_in_every_check():
    pgd, apgd = make_attack("pgd"), make_attack("apgd-ce")
    suite = {"theirs": Strangest(apgd.config), "pgd": pgd, "apgd-ce": apgd}
    assert suite_checks.strongest_iterative(suite) == "theirs"
    order = suite_checks.Strength.of(suite)
    weak, strong = outcome("pgd", "0" * 30 + "1" * 70), outcome("theirs", "1" * 100)
    check = suite_checks.check_order([weak, strong], order)
    assert not check.passed  # apgd-ce, which stands between them, was not run
    assert check.evidence == "eps 0.1: accuracy 0.7000 under pgd and 1.0000 under theirs"


def test_the_shipped_order_is_declared_by_the_attacks_and_gives_the_evidence_of_published_records():
    suite = {name: make_attack(name) for name in ("noise", "fgsm", "pgd", "apgd-ce", "apgd-t")}
    suite["square"] = make_attack("square")
    order = suite_checks.Strength.of(suite)
    assert order.names == ("noise", "fgsm", "pgd", "apgd-ce", "autoattack")
    assert order.neighbours(suite) == [("noise", "fgsm"), ("fgsm", "pgd"), ("pgd", "apgd-ce")]
    found = [outcome(name, "1" * 10, eps=eps) for name in suite for eps in (0.05, 0.1, 0.15, 0.2)]
    published = "12 comparisons of noise, fgsm, pgd, apgd-ce, autoattack hold"
    assert suite_checks.check_order(found, order).evidence == published
    assert suite_checks.strongest_iterative(suite) == "apgd-ce"


def test_declarations_that_contradict_each_other_order_nothing():
    class One(Strangest):
        stronger_than = ("two", "pgd")

    class Two(Strangest):
        stronger_than = ("one",)

    order = suite_checks.Strength.of({"one": One, "two": Two})
    assert order.pairs == {("pgd", "one"), ("pgd", "two")}
    none = suite_checks.check_order([outcome("pgd", "1" * 10)], suite_checks.Strength())
    assert (none.passed, none.evidence) == (True, "no attack of a declared order")


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
        assert suite_checks.check_order([weak, strong], shipped_order()).passed is passes
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
