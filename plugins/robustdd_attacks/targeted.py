"""Attacks towards a class of their own choice: targeted FGSM, PGD, MIM, APGD and C&W.

The field lists a "targeted" row beside the usual one. The attack then tries to reach one class and
not to leave one, which is harder: a targeted row says less about robustness, and more about what an
adversary can choose. The class is, by `target`,

- "next": (label + 1) mod K, as BEARD and ROME have it;
- "least-likely": the one with the smallest logit on the image (Kurakin, Goodfellow, Bengio 2017,
  "Adversarial machine learning at scale", section 2.3);
- "random": one of the wrong ones, drawn for each example.

What counts is the harness's: an example is broken if it is misclassified, whatever the class. So a
targeted attack leaves at most as many examples robust as it fails to bring to their targets.
What it returns is the point that is best for its target. `robust accuracy` of a suite that has
targeted attacks is an upper bound as it always is; it is a weak one if it has nothing else.

Under a targeted threat model the labels are the targets, and these are the attacks they are made
of.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustdd_attacks import papers
from robustdd_attacks.apgd import APGDCE, APGDConfig
from robustdd_attacks.cw import CW
from robustdd_attacks.fgsm import FGSM
from robustdd_attacks.mim import MIM
from robustdd_attacks.pgd import PGD
from robustdd_bench.attacks import Attack, AttackResult, AttackTask
from robustdd_bench.config import settings

Target = Literal["next", "least-likely", "random"]


def target_classes(task: AttackTask, target: Target) -> Tensor:
    """The class to reach for each example of an untargeted task (B,), never its label.

    It costs a forward pass of the images; "random" makes one draw.
    """
    labels = task.labels
    with torch.no_grad():
        logits = task.model(task.images)
    classes = logits.shape[1]
    if target == "least-likely":
        return logits.scatter(1, labels.unsqueeze(1), torch.inf).argmin(1)
    step = torch.ones_like(labels)
    if target == "random":
        step = 1 + task.generator.integers((), max(classes - 1, 1))
    return (labels + step) % classes


class _Towards(Attack):
    """An attack that another one carries out, as a targeted one."""

    routed = True

    @abc.abstractmethod
    def _attack(self) -> Attack:
        """What carries it out."""

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`."""
        if not task.threat.targeted:
            threat = dataclasses.replace(task.threat, targeted=True)
            targets = target_classes(task, self.config.target)
            task = dataclasses.replace(task, labels=targets, threat=threat)
        return self._attack().perturb(task)


class TargetedFGSM(_Towards):
    """FGSM towards a class; Linf and L2."""

    CITATION: ClassVar[str] = papers.FGSM

    @settings
    class Config(FGSM.Config):
        """Settings of `TargetedFGSM`."""

        target: Target = "next"
        """Which class: "next", "least-likely" or "random"."""

    def _attack(self) -> Attack:
        return FGSM(self.config)


class TargetedPGD(_Towards):
    """PGD towards a class; Linf and L2."""

    CITATION: ClassVar[str] = papers.PGD

    @settings
    class Config(PGD.Config):
        """Settings of `TargetedPGD`: those of `PGD`, and the target."""

        target: Target = "next"
        """Which class: "next", "least-likely" or "random"."""

    def _attack(self) -> Attack:
        return PGD(self.config)


class TargetedMIM(_Towards):
    """MIM towards a class; Linf and L2."""

    CITATION: ClassVar[str] = papers.MIM

    @settings
    class Config(MIM.Config):
        """Settings of `TargetedMIM`: those of `MIM`, and the target."""

        target: Target = "next"
        """Which class: "next", "least-likely" or "random"."""

    def _attack(self) -> Attack:
        return MIM(self.config)


class TargetedAPGD(_Towards):
    """APGD on the cross-entropy towards a class; Linf and L2."""

    CITATION: ClassVar[str] = papers.APGD

    @settings
    class Config(APGDConfig):
        """Settings of `TargetedAPGD`: those of `APGDCE`, and the target."""

        target: Target = "next"
        """Which class: "next", "least-likely" or "random"."""

    @classmethod
    def quick_config(cls) -> TargetedAPGD.Config:
        """A run of seconds for `robustdd check-plugin`."""
        return cls.Config(steps=10)

    def _attack(self) -> Attack:
        return APGDCE(self.config)


class TargetedCW(_Towards):
    """Carlini and Wagner's L2 attack towards a class."""

    CITATION: ClassVar[str] = papers.CW

    norms = ("L2",)

    @settings
    class Config(CW.Config):
        """Settings of `TargetedCW`: those of `CW`, and the target."""

        target: Target = "next"
        """Which class: "next", "least-likely" or "random"."""

    @classmethod
    def quick_config(cls) -> TargetedCW.Config:
        """Few steps, for `robustdd check-plugin`."""
        return cls.Config(steps=50, binary_steps=5, initial_c=0.01)

    def _attack(self) -> Attack:
        return CW(self.config)
