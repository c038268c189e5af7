"""The checks of an attack, on small models whose answers do not depend on the batch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, AttackTask, Model, Norm, ThreatModel
from robustdd_bench.conformance import surroundings
from robustdd_bench.conformance.attack_models import (
    CLASSES,
    SHAPE_CHW,
    PairOfStudents,
    Smooth,
    examples,
    images_of,
    same_bits,
    with_batch_norm,
)
from robustdd_bench.conformance.configurations import config_of, load_class, refuses_nonsense
from robustdd_bench.conformance.findings import FailedCheckError, Finding, one_line, run_checks
from robustdd_bench.errors import UsageError
from robustdd_bench.guard import guard
from robustdd_bench.guard.patches import Patches
from robustdd_bench.plugins import NAME_PATTERN, Entry
from robustdd_bench.seeds import ExampleGenerator
from robustdd_bench.signatures import has_former_signature, warn_of_former

EPS: dict[Norm, float] = {"Linf": 0.1, "L2": 0.6}
NORMS: tuple[Norm, ...] = ("Linf", "L2")


def check_attack(entry: Entry) -> list[Finding]:
    """Run every check against a registered attack."""
    bench = _Bench(entry)
    with surroundings.one_thread():
        return run_checks(
            {
                "class": bench.check_class,
                "order": bench.check_order,
                "config": bench.check_config,
                "nonsense": bench.check_nonsense,
                "norms": bench.check_norms,
                "output": bench.check_output,
                "ball": bench.check_ball,
                "box": bench.check_box,
                "eps 0": bench.check_eps_0,
                "model": bench.check_model,
                "inputs": bench.check_inputs,
                "batches": bench.check_batches,
                "together": bench.check_together,
                "determinism": bench.check_determinism,
                "generators": bench.check_generators,
                "settings": bench.check_settings,
                "import": lambda: surroundings.check_import(entry.plugin),
                "strength": bench.check_strength,
            },
            entry.plugin,
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One attack, and what it did to its surroundings."""

    images: Tensor
    adversarial: Tensor
    attached: bool
    generators: tuple[str, ...]
    settings: tuple[str, ...]
    inputs: tuple[str, ...]


class _Bench:
    """One entry on the bench; every method that begins with `check_` is a check."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._smooth = Smooth()
        # Elsewhere than in the check "model", the model is a plain function, as it may be.
        self._model: Model = self._smooth.__call__

    @cached_property
    def _class(self) -> type[Any]:
        return load_class(self._entry, Attack)

    @cached_property
    def _reference(self) -> dict[Norm, _Outcome | Exception]:
        """What the attack makes for each norm, or why it makes nothing."""
        found: dict[Norm, _Outcome | Exception] = {}
        for norm in NORMS:
            try:
                found[norm] = self._attack(norm)
            except Exception as error:
                found[norm] = error
        return found

    def _expected(self) -> dict[Norm, _Outcome]:
        """What the attack makes for each norm that it supports."""
        found = {
            norm: outcome
            for norm, outcome in self._reference.items()
            if isinstance(outcome, _Outcome)
        }
        if not found:
            first = next(iter(self._reference.values()))
            assert isinstance(first, Exception)
            reason = f"{type(first).__name__}: {one_line(first)}"
            raise FailedCheckError(f"not checked, the attack itself failed: {reason}")
        return found

    def _attack(
        self,
        norm: Norm,
        *,
        eps: float | None = None,
        model: Model | None = None,
        global_seed: int = 0,
        count: int = 8,
        part: slice = slice(None),
    ) -> _Outcome:
        """Attack `part` of `count` examples, with a new object."""
        attack = self._class(config_of(self._class, self._entry))
        model = self._model if model is None else model
        images, labels, index = (tensor[part] for tensor in examples(model, count))
        threat = ThreatModel(norm, EPS[norm] if eps is None else eps)
        given = images.clone(), labels.clone(), index.clone()
        who = f"attack {self._entry.name!r}"
        call = guard(self._entry.plugin, who, patches=Patches(self._networks(model)))
        with surroundings.seeded_globals(global_seed), call:
            states = surroundings.generator_states()
            result = attack.perturb(
                AttackTask(
                    model=model,
                    images=images,
                    labels=labels,
                    threat=threat,
                    generator=ExampleGenerator(5, index),
                    sources=(model,) if attack.uses_sources else (),
                )
            )
            moved = surroundings.differences(states, surroundings.generator_states())
        adversarial = images_of(result)
        names = ("images", "labels", "indices")
        touched = [
            name
            for name, old, new in zip(names, given, (images, labels, index), strict=True)
            if not torch.equal(old, new)
        ]
        if images.requires_grad or images.grad is not None:
            touched.append("images' gradients")
        return _Outcome(
            given[0],
            adversarial.detach(),
            adversarial.requires_grad,
            moved,
            call.changes,
            tuple(touched),
        )

    def _networks(self, model: Model) -> list[nn.Module]:
        return [self._smooth, *([model] if isinstance(model, nn.Module) else [])]

    def _each(self, check: Callable[[Norm, _Outcome], None]) -> None:
        for norm, outcome in self._expected().items():
            check(norm, outcome)

    def check_class(self) -> str:
        if has_former_signature(self._class):
            warn_of_former(self._class, self._entry.name, self._entry.plugin)
            return f"{self._class.__name__} is a complete Attack, with the former arguments"
        return f"{self._class.__name__} is a complete Attack"

    def check_order(self) -> str:
        kind, name = self._class, self._entry.name
        told: dict[str, tuple[str, ...]] = {}
        for key in ("stronger_than", "weaker_than"):
            names = told[key] = getattr(kind, key)
            if not isinstance(names, tuple) or not all(
                isinstance(other, str) and re.fullmatch(NAME_PATTERN, other) for other in names
            ):
                raise FailedCheckError(
                    f"`{key}` must be a tuple of registered names, such as ('pgd',), not {names!r}"
                )
            if name in names:
                raise FailedCheckError(f"`{key}` names the attack itself")
        both = sorted(set(told["stronger_than"]) & set(told["weaker_than"]))
        if both:
            raise FailedCheckError(f"it is declared stronger and weaker than {', '.join(both)}")
        if not any(told.values()):
            return "declares no order of strength: the sanity checks compare it with no attack"
        return "; ".join(
            f"{key.replace('_', ' ')} {', '.join(names)}" for key, names in told.items() if names
        )

    def check_config(self) -> str:
        config = config_of(self._class, self._entry)
        self._class(config)
        quick = "quick_config" if hasattr(self._class, "quick_config") else "the defaults"
        return f"a frozen dataclass with defaults; checked with {quick}"

    def check_nonsense(self) -> str:
        return refuses_nonsense(self._class.Config, self._entry)

    def check_norms(self) -> str:
        said = []
        for norm, outcome in self._reference.items():
            if isinstance(outcome, _Outcome):
                said.append(f"{norm} works")
            elif isinstance(outcome, UsageError | ValueError):
                said.append(f"{norm} is refused ({one_line(outcome)})")
            else:
                raise FailedCheckError(
                    f"{norm} ends in {type(outcome).__name__}: {one_line(outcome)}; a norm that "
                    "is not supported must be a UsageError or ValueError"
                )
        self._expected()
        return "; ".join(said)

    def check_output(self) -> str:
        def check(norm: Norm, outcome: _Outcome) -> None:
            images, adversarial = outcome.images, outcome.adversarial
            if adversarial.shape != images.shape or adversarial.dtype != images.dtype:
                raise FailedCheckError(
                    f"{norm}: {adversarial.dtype} of shape {tuple(adversarial.shape)} for images "
                    f"{images.dtype} of shape {tuple(images.shape)}"
                )
            if not bool(torch.isfinite(adversarial).all()):
                raise FailedCheckError(f"{norm}: NaN or infinity")
            if outcome.attached:
                raise FailedCheckError(f"{norm}: the result still requires gradients; detach it")

        self._each(check)
        return "finite, of the shape and dtype of the images"

    def check_ball(self) -> str:
        def check(norm: Norm, outcome: _Outcome) -> None:
            threat = ThreatModel(norm, EPS[norm])
            distance = float(
                threat.distance(outcome.adversarial, outcome.images).nan_to_num().max()
            )
            if distance > threat.eps * (1 + 1e-5) + 1e-6:
                raise FailedCheckError(f"{norm}: {distance:.6g} away, eps is {threat.eps:g}")

        self._each(check)
        return "within eps of the images"

    def check_box(self) -> str:
        def check(norm: Norm, outcome: _Outcome) -> None:
            low, high = float(outcome.adversarial.min()), float(outcome.adversarial.max())
            if low < 0 or high > 1:
                raise FailedCheckError(f"{norm}: pixels from {low:.6g} to {high:.6g}")

        self._each(check)
        return "pixels in [0,1]"

    def check_eps_0(self) -> str:
        def check(norm: Norm, _: _Outcome) -> None:
            outcome = self._attack(norm, eps=0.0)
            if not torch.equal(outcome.adversarial, outcome.images):
                raise FailedCheckError(f"{norm}: the images are changed at eps 0")

        self._each(check)
        return "nothing is changed at eps 0"

    def check_model(self) -> str:
        def check(norm: Norm, _: _Outcome) -> None:
            model = with_batch_norm()
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            outside = surroundings.outside(model)
            self._attack(norm, model=model)
            if surroundings.outside(model) != outside:
                raise FailedCheckError(f"{norm}: a hook or an attribute is left on the model")
            changed = [
                name
                for name, tensor in model.state_dict().items()
                if not torch.equal(tensor, before[name])
            ]
            if changed:
                raise FailedCheckError(f"{norm}: the model's {changed[0]} is changed")
            if any(module.training for module in model.modules()):
                raise FailedCheckError(f"{norm}: the model is left in train mode")
            for name, parameter in model.named_parameters():
                if parameter.grad is not None or parameter.requires_grad:
                    raise FailedCheckError(f"{norm}: gradients are left on the model's {name}")

        self._each(check)
        return "parameters, buffers, gradients, hooks and mode of the model are as they were"

    def _untouched(self, what: Literal["generators", "settings", "inputs"], complaint: str) -> None:
        def check(norm: Norm, outcome: _Outcome) -> None:
            changed: tuple[str, ...] = getattr(outcome, what)
            if changed:
                raise FailedCheckError(f"{norm}: {complaint.format(' and '.join(changed))}")

        self._each(check)

    def check_inputs(self) -> str:
        self._untouched("inputs", "it changes the {} it is given")
        return "images and labels are as they were"

    def check_batches(self) -> str:
        if self._class.batch_dependent:
            self._expected()
            return "not checked: it declares that its examples depend on the batch"

        def check(norm: Norm, outcome: _Outcome) -> None:
            parts = [slice(0, 1), slice(1, 5), slice(5, 8)]
            pieces = [self._attack(norm, part=part).adversarial for part in parts]
            different = ~torch.isclose(
                torch.cat(pieces), outcome.adversarial, atol=1e-5, rtol=0, equal_nan=True
            )
            count = int(different.flatten(1).any(1).sum())
            if count:
                raise FailedCheckError(
                    f"{norm}: {count} of 8 examples come out otherwise in batches of 1, 4 and 3"
                )

        self._each(check)
        return "the same examples at another batch size"

    def check_together(self) -> str:
        if not self._class.routed:
            self._expected()
            return "not checked: it attacks one student at a time"
        students = (self._smooth, Smooth(name="another model"))
        owner, place = torch.arange(16) % 2, torch.arange(16) // 2
        images, _, index = examples(self._model, 8)
        labels = torch.stack([student(images).argmax(1) for student in students])

        def check(norm: Norm, _: _Outcome) -> None:
            attack = self._class(config_of(self._class, self._entry))
            result = attack.perturb(
                AttackTask(
                    model=PairOfStudents(students, owner),
                    images=images[place],
                    labels=labels[owner, place],
                    threat=ThreatModel(norm, EPS[norm]),
                    generator=ExampleGenerator(5, index[place]),
                )
            )
            alone = torch.stack([self._attack(norm, model=m).adversarial for m in students])
            different = ~torch.isclose(
                images_of(result), alone[owner, place], atol=1e-5, rtol=0, equal_nan=True
            )
            count = int(different.flatten(1).any(1).sum())
            if count:
                raise FailedCheckError(
                    f"{norm}: {count} of 16 examples come out otherwise with two students together"
                )

        self._each(check)
        return "the same examples with two students together"

    def check_determinism(self) -> str:
        def check(norm: Norm, outcome: _Outcome) -> None:
            if not same_bits(self._attack(norm).adversarial, outcome.adversarial):
                raise FailedCheckError(f"{norm}: a second run gives other examples")

        self._each(check)
        return "a second run gives the same examples, bit for bit"

    def check_generators(self) -> str:
        self._untouched("generators", "it moves {} global generator")

        def check(norm: Norm, outcome: _Outcome) -> None:
            other = self._attack(norm, global_seed=1).adversarial
            if not same_bits(other, outcome.adversarial):
                raise FailedCheckError(f"{norm}: the examples depend on a global generator")

        self._each(check)
        return "no global generator is used or moved"

    def check_settings(self) -> str:
        self._untouched("settings", "it leaves {} changed")
        return "torch, numpy, Python and the process are as they were"

    def check_strength(self) -> str:
        """Where the ball holds every image, a linear model has to fall to chance."""
        linear = Smooth(hidden=None)
        said = []
        for norm in self._expected():
            eps = 1.0 if norm == "Linf" else math.sqrt(math.prod(SHAPE_CHW))
            outcome = self._attack(norm, eps=eps, model=linear, count=24)
            clean = linear(outcome.images).argmax(1)
            accuracy = float((linear(outcome.adversarial).argmax(1) == clean).double().mean())
            if accuracy > 1 / CLASSES:
                raise FailedCheckError(
                    f"{norm}: at eps {eps:g} a linear model keeps an accuracy of {accuracy:.2f}, "
                    f"chance is {1 / CLASSES:.2f}"
                )
            said.append(f"{norm} at eps {eps:g}: accuracy {accuracy:.2f}")
        return "linear model, " + "; ".join(said)
