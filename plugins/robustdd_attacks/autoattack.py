"""AutoAttack, standard version, by the package pyautoattack (the authors' code, repackaged).

Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks": APGD-CE, targeted APGD-DLR, targeted FAB and Square, one after the other on
the examples that are still unbroken. Its parameters are left as they are, so that its number is
AutoAttack's. Its random numbers are drawn for a batch as a whole: the result moves by about a point
with the batch size and the seed, and the harness records both.

Few classes. The package's nine target classes end in an error with fewer than ten classes: here
they are min(9, K - 1). The targeted DLR loss needs four classes and the DLR loss three: with K = 3
the standard version takes APGD-DLR in place of APGD-T, with K = 2 it goes without (APGD-CE, FAB-T
and Square are left), and says so in a remark.

What this file keeps away from its user: the package seeds torch's global generators, ends traces
(`sys.settrace(None)`), counts calls over the life of the process, so that one model with gradients
in its forward pass makes all later ones look "dynamic", adds gradients to parameters that are not
frozen, computes in float32 only, and logs its flags and prints. Its Square
draws the start of a window from [0, h - s) without the end, so that it never touches an image's
last row and column; this is left as it is.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from robustdd_attacks import papers
from robustdd_bench.attacks import Attack, AttackResult, AttackTask, Model, ThreatModel
from robustdd_bench.config import settings
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.prediction import frozen

if TYPE_CHECKING:
    from types import ModuleType

Name = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]

STANDARD: tuple[Name, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
_LOGGER = "auto-attack"
_LEAST_CLASSES: dict[Name, int] = {"apgd-dlr": 3, "apgd-t": 4}
_FEW_CLASSES = re.compile(r"with only \d classes it is not possible to use the .*DLR loss")
_SQUARE_L2_PIXELS = 5


class AutoAttack(Attack):
    """The standard ensemble of four attacks, or some of its parts."""

    CITATION: ClassVar[str] = papers.AUTOATTACK
    stronger_than = ("apgd-ce",)

    batch_dependent = True
    counted_classes = 10
    """It attacks towards nine classes at most."""

    @settings
    class Config:
        """Settings of `AutoAttack`."""

        attacks: tuple[Name, ...] = ()
        """Which attacks to run, in this order, with the standard version's parameters; none: the
        standard version."""

        @model_validator(mode="after")
        def _once(self) -> Self:
            if len(set(self.attacks)) < len(self.attacks):
                raise ValueError("attacks names one of them twice")
            return self

    @classmethod
    def quick_config(cls) -> AutoAttack.Config:
        """The first of the four only, for `robustdd check-plugin`."""
        return cls.Config(attacks=("apgd-ce",))

    def passes(self, classes: int) -> tuple[int, int] | None:
        """Passes for one image; see `Attack.passes`. Those of the untargeted FAB are not known."""
        names, _ = _standard(classes) if not self.config.attacks else (self.config.attacks, [])
        targets = min(9, classes - 1)
        known: dict[Name, tuple[int, int]] = {
            "apgd-ce": (103, 101),
            "apgd-dlr": (103, 101),
            "apgd-t": (102 * targets + 2, 101 * targets),
            "fab-t": (203 * targets + 2, 100 * targets),
            "square": (5004, 0),
        }
        if not known.keys() >= set(names):
            return None
        # Nine more: the package looks at the model first, and we at what it found.
        return 9 + sum(known[name][0] for name in names), sum(known[name][1] for name in names)

    def perturb(self, task: AttackTask) -> AttackResult:
        """Adversarial examples; see `Attack.perturb`. Of the generator only the seed is used.

        Raises:
            UsageError: the package is missing, the threat model is targeted, or an attack that was
                asked for cannot work with so few classes or pixels.
        """
        model, images, threat = task.model, task.images, task.threat
        if threat.targeted:
            raise UsageError("AutoAttack has no targeted version; choose another attack")
        package = _package()
        if len(images) == 0 or threat.eps == 0:
            return AttackResult(images=images.clone())

        def in_float32(x: Tensor) -> Tensor:
            return model(x.to(images.dtype)).float()

        start = images.detach().float()
        with torch.no_grad():
            classes = in_float32(start[:1]).shape[1]
        names, remarks = self._names(classes, images, threat)
        with _shielded(package, model) as flags:
            suite = package.AutoAttack(
                in_float32,
                norm=threat.norm,
                eps=threat.eps,
                version="standard",
                seed=task.generator.seed,
                device=images.device,
            )
            suite.verbose = False
            suite.attacks_to_run = list(names)
            suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = min(9, classes - 1)
            found, _ = suite.run_standard_evaluation(start, task.labels, batch_size=len(images))
        # `_names` leaves out what few classes rule out; the package complains all the same.
        remarks += [flag for flag in flags if not _FEW_CLASSES.match(flag)]
        moved = (found != start) & found.isfinite()
        found = torch.where(moved, found.to(images.dtype), images)
        # In the precision of the images the point may lie a rounding error outside.
        found = threat.project(found, images).detach()
        return AttackResult(images=found, remarks=tuple(remarks))

    def _names(
        self, classes: int, images: Tensor, threat: ThreatModel
    ) -> tuple[tuple[Name, ...], list[str]]:
        """The attacks to run on a model of so many classes, and remarks on what is left out."""
        chosen: tuple[Name, ...] = self.config.attacks
        remarks: list[str] = []
        for name in chosen:
            least = _LEAST_CLASSES.get(name, 2)
            if classes < least:
                raise UsageError(f"AutoAttack's {name} needs {least} classes, not {classes}")
        if not chosen:
            chosen, remarks = _standard(classes)
        side = min(images.shape[2:])
        if "square" in chosen and threat.norm == "L2" and side < _SQUARE_L2_PIXELS:
            raise UsageError(
                f"AutoAttack's square needs images of {_SQUARE_L2_PIXELS} by {_SQUARE_L2_PIXELS} "
                f"pixels in L2, not {side}; set attacks without it"
            )
        return chosen, remarks


def _standard(classes: int) -> tuple[tuple[Name, ...], list[str]]:
    """The attacks of the standard version for so many classes, and remarks on what is left out."""
    if classes > 3:
        return STANDARD, []
    if classes == 3:
        said = "with 3 classes there is no targeted DLR loss: apgd-dlr for apgd-t"
        return ("apgd-ce", "apgd-dlr", "fab-t", "square"), [said]
    said = f"with {classes} classes there is no DLR loss: apgd-t was left out"
    return ("apgd-ce", "fab-t", "square"), [said]


def _package() -> ModuleType:
    try:
        import pyautoattack
    except ModuleNotFoundError as error:
        if error.name != "pyautoattack":
            raise
        raise UsageError("AutoAttack needs a package: pip install pyautoattack") from error
    module: ModuleType = pyautoattack
    return module


@contextlib.contextmanager
def _shielded(package: ModuleType, model: Model) -> Iterator[list[str]]:
    """Run the package with nothing of its surroundings changed; yields the flags it raises."""
    flags: list[str] = []
    counters: dict[str, int] = package.autoattack.checks.funcs
    trace = sys.gettrace()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_generators_kept())
        stack.enter_context(_collected_log(flags))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if isinstance(model, nn.Module):
            stack.enter_context(frozen(model))
        counters.update(dict.fromkeys(counters, 0))
        try:
            yield flags
        finally:
            counters.update(dict.fromkeys(counters, 0))
            sys.settrace(trace)


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave torch's global generators, on the CPU and on every CUDA device, as they are."""
    started = torch.cuda.is_initialized()
    with torch.random.fork_rng(list(range(torch.cuda.device_count())) if started else []):
        yield
    if torch.cuda.is_available() and not torch.cuda.is_initialized():
        # The package's seed waits for CUDA to start; the one of torch.manual_seed takes its place.
        torch.cuda.manual_seed_all(torch.initial_seed())


@contextlib.contextmanager
def _collected_log(flags: list[str]) -> Iterator[None]:
    """Put what the package logs as a warning into `flags`, and on no terminal."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            flags.append(record.getMessage().removesuffix(" See flags_doc.md for details."))

    logger = logging.getLogger(_LOGGER)
    before = logger.handlers, logger.level, logger.propagate, logger.disabled
    logger.handlers = [Collector(logging.WARNING)]
    logger.propagate = logger.disabled = False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate, logger.disabled = before
        logger.setLevel(level)
