"""Whatever an attack does to the student it holds, the one that judges is another."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, AttackResult, AttackTask, ThreatModel
from robustdd_bench.errors import PluginError, PluginWarning
from robustdd_bench.evaluation.robustness import attack_student, attack_students
from robustdd_bench.evaluation.sanity.student_checks import check_unconstrained

LINF = ThreatModel("Linf", 0.001)
COUNT = 40


class Student(nn.Module):
    """Tells dark images from bright ones, by far more than any small eps can change."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.scale.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        self.register_buffer("middle", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale(x.mean((1, 2, 3)).unsqueeze(1) - self.middle)
        return logits


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    labels = torch.arange(COUNT) % 2
    images = (0.2 + 0.6 * labels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return nn.Sequential(nn.Identity(), Student()).eval(), images, labels


def flipped(*inputs: Any) -> Tensor:
    output: Tensor = inputs[-1]
    return -output


def hook(model: Any, generator: Any, threat: Any) -> None:
    model.register_forward_hook(flipped)


def inner_hook(model: Any, generator: Any, threat: Any) -> None:
    model[1].scale.register_forward_hook(flipped)


def pre_hook(model: Any, generator: Any, threat: Any) -> None:
    model.register_forward_pre_hook(lambda module, inputs: (1 - inputs[0],))


def global_hook(model: Any, generator: Any, threat: Any) -> None:
    nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: -output if isinstance(module, Student) else output
    )


def forward_of_the_object(model: Any, generator: Any, threat: Any) -> None:
    plain = model[1].forward
    model[1].forward = lambda x: -plain(x)


def forward_of_the_class(model: Any, generator: Any, threat: Any) -> None:
    plain = Student.forward
    Student.forward = lambda self, x: -plain(self, x)  # type: ignore[method-assign]


def forward_of_linear(model: Any, generator: Any, threat: Any) -> None:
    plain = nn.Linear.forward
    nn.Linear.forward = lambda self, x: -plain(self, x)  # type: ignore[method-assign]


def call_of_all_modules(model: Any, generator: Any, threat: Any) -> None:
    Student.__call__ = lambda self, x: -self.forward(x)


def function(model: Any, generator: Any, threat: Any) -> None:
    plain = nn.functional.linear
    nn.functional.linear = lambda *inputs: -plain(*inputs)  # type: ignore[assignment]


def argmax(model: Any, generator: Any, threat: Any) -> None:
    plain = Tensor.argmax
    Tensor.argmax = lambda self, *more, **options: 1 - plain(self, *more, **options)  # type: ignore


def kind(model: Any, generator: Any, threat: Any) -> None:
    class Liar(Student):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    model[1].__class__ = Liar


def child(model: Any, generator: Any, threat: Any) -> None:
    class Flip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1 - x

    model[0] = Flip()


def train_mode(model: Any, generator: Any, threat: Any) -> None:
    model[1].scale.train()
    model[0] = nn.Dropout(1.0).train()


def wider_ball(model: Any, generator: Any, threat: Any) -> None:
    object.__setattr__(threat, "eps", 100.0)


def other_places(model: Any, generator: Any, threat: Any) -> None:
    generator.index.fill_(1)


TRICKS = [
    hook, inner_hook, pre_hook, global_hook, forward_of_the_object, forward_of_the_class,
    forward_of_linear, call_of_all_modules, function, argmax, kind, child, train_mode, wider_ball,
    other_places,
]  # fmt: skip


class Trick(Attack):
    """Plays a trick in each batch, and returns what a far ball would hold, or the images."""

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, act: Callable[..., None], far: bool = False) -> None:
        super().__init__(self.Config())
        self._act, self._far = act, far

    def perturb(self, task: AttackTask) -> AttackResult:
        self._act(task.model, task.generator, task.threat)
        return AttackResult(images=1 - task.images if self._far else task.images)


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_no_trick_of_an_attack_is_credited(trick: Callable[..., None]) -> None:
    model, images, labels = problem()
    expected = model(images)
    attack = Trick(trick, far=trick is wider_ball)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = attack_student(model, images, labels, attack, LINF, 0, 10)
    assert outcome.attacked == COUNT
    assert outcome.broken == 0
    assert torch.equal(model(images), expected), "nothing is left on the student"
    named = [str(w.message) for w in caught if issubclass(w.category, PluginWarning)]
    shared = {"global_hook", "forward_of_the_class", "forward_of_linear", "call_of_all_modules"}
    if trick.__name__ in shared | {"function", "argmax"}:
        assert len(named) == 1
        assert "attack 'Trick' left" in named[0]


@pytest.mark.parametrize("trick", [hook, forward_of_the_object, kind, child])
def test_no_trick_on_one_of_several_students_reaches_another(trick: Callable[..., None]) -> None:
    models = [problem()[0] for _ in range(3)]
    _, images, labels = problem()
    right = [torch.ones(COUNT, dtype=torch.bool)] * 3

    class OnSources(Trick):
        uses_sources = True

        def perturb(self, task: AttackTask) -> AttackResult:
            for source in task.sources:
                self._act(source, task.generator, task.threat)
            return super().perturb(task)

    outcomes = attack_students(
        models, images, labels, OnSources(trick), LINF, [0, 1, 2], 10, right,
        sources=[[m for m in models if m is not model] for model in models],
    )  # fmt: skip
    assert [outcome.broken for outcome in outcomes] == [0, 0, 0]


def test_no_trick_of_an_attack_on_several_students_together_is_credited() -> None:
    models = [problem()[0] for _ in range(2)]
    _, images, labels = problem()

    class Together(Trick):
        routed = True

        def perturb(self, task: AttackTask) -> AttackResult:
            for student in task.model._students.models:
                self._act(student, task.generator, task.threat)
            return AttackResult(images=task.images)

    right = [torch.ones(COUNT, dtype=torch.bool)] * 2
    for layout in ("loop", "vmap"):
        outcomes = attack_students(
            models, images, labels, Together(hook), LINF, [0, 1], 10, right, layout=layout
        )
        assert [outcome.broken for outcome in outcomes] == [0, 0]


class Lying(Tensor):
    """Says that it is finite, inside everything and wrong."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        return torch.ones_like(found) if getattr(found, "dtype", None) == torch.bool else found


def test_a_tensor_of_a_kind_of_its_own_is_refused() -> None:
    model, images, labels = problem()

    class Subclass(Trick):
        def perturb(self, task: AttackTask) -> AttackResult:
            return AttackResult(images=(1 - task.images).as_subclass(Lying))

    with pytest.raises(PluginError, match="perturb returned Lying, not a tensor"):
        attack_student(model, images, labels, Subclass(hook), LINF, 0, 10)


def test_a_student_that_cannot_be_copied_is_named() -> None:
    class Single(Student):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one")

    _, images, labels = problem()
    with pytest.raises(PluginError, match=r"the network Single cannot be copied.*only one"):
        attack_student(Single(), images, labels, Trick(hook), LINF, 0, 10)


def test_the_sanity_checks_judge_another_network_too() -> None:
    model, images, labels = problem()
    check = check_unconstrained(model, images, labels, Trick(hook), 0, 10, eps=0.001)
    assert not check.passed
    assert "accuracy 1.0000" in check.evidence


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_an_attack_that_exits_has_failed(error: BaseException) -> None:
    model, images, labels = problem()

    def act(*_: Any) -> None:
        raise error

    with pytest.raises(PluginError, match=r"attack 'quits' of plugin 'p' failed: "):
        attack_student(model, images, labels, Trick(act), LINF, 0, 10, name="quits", plugin="p")
