"""An attack with the arguments of before version 0.2 works for one more release, with a warning."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from attack_models import linear_problem, make_attack, task_of, trained_network
from commands import robustdd
from robustdd_attacks.pgd import PGD
from small_runs import TRACK
from strangers import install

from robustdd_bench.attacks import Attack, AttackResult, AttackTask, ThreatModel
from robustdd_bench.conformance import check_attack
from robustdd_bench.errors import PluginDeprecationWarning, PluginError, PluginWarning
from robustdd_bench.evaluation.robustness import attack_student
from robustdd_bench.plugins import Entry
from robustdd_bench.signatures import has_former_signature, warn_of_former

LINF = ThreatModel("Linf", 0.1)


class Former(Attack):
    """One signed step, with the former arguments, the sources and the remarks of that time."""

    uses_sources = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        scale: float = 1.0

    def __init__(self, config):
        super().__init__(config)
        self.warnings.append("told before any call")

    def perturb(self, model, images, labels, threat, generator):
        self.warnings.append(f"{len(self.sources)} sources")
        x = images.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        return threat.project(images + threat.eps * gradient.sign(), images)


class Present(Former):
    """The same with a task, built on the other."""

    def perturb(self, task: AttackTask) -> AttackResult:
        return super().perturb(task)


class OnShipped(PGD):
    """The former arguments, passed on to an attack that takes a task."""

    def perturb(self, model, images, labels, threat, generator):
        return super().perturb(model, images, labels, threat, generator)


def attack(kind):
    return kind(kind.Config())


def test_the_signature_says_which_of_the_two_an_attack_has() -> None:
    assert has_former_signature(Former)
    assert has_former_signature(OnShipped)
    assert not has_former_signature(Present)
    assert not has_former_signature(PGD)
    assert Former.perturb.__name__ == "perturb"


def test_former_arguments_give_the_same_examples_as_a_task() -> None:
    task = trained_network()
    given = task_of(task.model, task.images, task.labels, LINF)
    present, former = attack(Present).perturb(given), attack(Former).perturb(given)
    assert isinstance(former, AttackResult)
    assert torch.equal(present.images, former.images)
    by_hand = attack(Former)
    direct = by_hand.perturb(task.model, task.images, task.labels, LINF, given.generator)
    assert torch.equal(direct, former.images)
    assert not torch.equal(direct, task.images)


def test_the_harness_lends_sources_and_keeps_remarks_of_an_attack_of_either_kind() -> None:
    task = trained_network()
    found = [
        attack_student(
            task.model, task.images, task.labels, attack(kind), LINF, 0, 50, sources=[[task.model]]
        )
        for kind in (Former, Present)
    ]
    assert found[0].warnings == found[1].warnings == ("1 sources",)
    assert torch.equal(found[0].robust, found[1].robust)
    assert found[0].broken > 0
    made = attack(Former)
    attack_student(task.model, task.images, task.labels, made, LINF, 0, 50, sources=[[task.model]])
    assert made.sources == (), "they are lent for the time of a call"


def test_an_attack_of_the_former_kind_may_build_on_a_shipped_one() -> None:
    task = trained_network()
    with pytest.warns(PluginDeprecationWarning, match="OnShipped.perturb is called as perturb"):
        found = attack_student(task.model, task.images, task.labels, attack(OnShipped), LINF, 3, 50)
    expected = attack_student(task.model, task.images, task.labels, make_attack("pgd"), LINF, 3, 50)
    assert torch.equal(found.robust, expected.robust)


def test_the_warning_names_plugin_distribution_and_attack() -> None:
    words = r"plugin 'mine' \(robustdd-mine\): attack 'old' has perturb\(model, .* version 0.3"
    with pytest.warns(PluginDeprecationWarning, match=words) as caught:
        warn_of_former(Former, "old", "mine", "robustdd-mine")
    assert issubclass(PluginDeprecationWarning, DeprecationWarning)
    assert issubclass(PluginDeprecationWarning, PluginWarning), "so that the command line shows it"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_former(Present, "new", "mine", "robustdd-mine")


def test_check_plugin_passes_an_attack_of_the_former_kind_and_warns() -> None:
    entry = Entry("attacks", "old", f"{__name__}:Former", "", "mine")
    with pytest.warns(PluginDeprecationWarning, match="plugin 'mine': attack 'old' has"):
        findings = check_attack(entry)
    assert [finding for finding in findings if not finding.passed] == []
    assert "with the former arguments" in findings[0].detail


class Neither(Attack):
    """Two arguments are neither a task nor the five of before."""

    @dataclass(frozen=True)
    class Config:
        pass

    def perturb(self, model, images):
        return images


def test_an_attack_with_any_other_signature_fails_and_is_named() -> None:
    problem = linear_problem((1, 2, 2), "Linf")
    words = r"attack 'odd' of plugin 'p' failed: TypeError: .*perturb\(\) missing 1 required"
    with pytest.raises(PluginError, match=words):
        attack_student(
            problem.model, problem.images, problem.labels, attack(Neither), LINF, 0, 5,
            name="odd", plugin="p",
        )  # fmt: skip


CODE = """
from dataclasses import dataclass

from robustdd_bench.attacks import Attack


class Old(Attack):
    @dataclass(frozen=True)
    class Config:
        shift: float = 0.5

    def perturb(self, model, images, labels, threat, generator):
        return threat.project(images + self.config.shift, images)


@hookimpl
def robustdd_register_attacks(register):
    register("old", "stranger_ancient:Old", "from before")
"""


def test_a_run_with_a_plugin_of_the_former_kind_names_it_in_one_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", "ancient", CODE)))
    track = tmp_path / "track.toml"
    track.write_text(f'{TRACK.read_text()}\n[[attacks]]\nname = "old"\n')
    done = robustdd(
        "run", "--method", "random", "--track", str(track), "--out", str(tmp_path / "runs")
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "attack 'old'" in line]
    told = [line for line in lines if line.startswith("warning: ")]
    assert told == [
        "warning: plugin 'ancient' (robustdd-ancient): attack 'old' has perturb(model, images, "
        "labels, threat, generator), which version 0.3 drops; write perturb(task: AttackTask) -> "
        "AttackResult (robustdd_bench/attacks.py)"
    ]
