"""The arguments that `Attack.perturb` had before version 0.2, for one more release.

An attack was `perturb(model, images, labels, threat, generator) -> Tensor`, it found other students
in `self.sources` and put remarks into `self.warnings`. It is now `perturb(task) -> AttackResult`.
Which of the two an attack has is decided by its signature, when its class is made; both then take
both kinds of call, so that either may build on the other. Version 0.3 drops this module.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from robustdd_bench.errors import PluginDeprecationWarning
from robustdd_bench.guard import plugin_of

FORMER = ("model", "images", "labels", "threat", "generator")
_WHAT = (
    "perturb(model, images, labels, threat, generator), which version 0.3 drops; write "
    "perturb(task: AttackTask) -> AttackResult (robustdd_bench/attacks.py)"
)


def has_former_signature(kind: type[Any]) -> bool:
    """Whether `perturb` of a class is written with the former arguments."""
    return getattr(kind.perturb, "former", False)


def warn_of_former(kind: type[Any], name: str, plugin: str, distribution: str = "") -> None:
    """Warn, in a line that names the plugin, where an attack has the former signature.

    Args:
        kind: the class of the attack.
        name: what the attack is called.
        plugin: the name of its entry point.
        distribution: the installed package that it comes with, where that is known.
    """
    if has_former_signature(kind):
        source = f"{plugin!r} ({distribution})" if distribution else repr(plugin)
        text = f"plugin {source}: attack {name!r} has {_WHAT}"
        warnings.warn(text, PluginDeprecationWarning, stacklevel=3)


def both_signatures(kind: type[Any], task: type[Any], result: type[Any]) -> None:
    """Let the `perturb` that a class defines take a task as well as the former arguments.

    Args:
        kind: a class of attacks.
        task: `robustdd_bench.attacks.AttackTask`.
        result: `robustdd_bench.attacks.AttackResult`.
    """
    own = kind.__dict__.get("perturb")
    if not inspect.isfunction(own) or getattr(own, "__isabstractmethod__", False):
        return
    if _takes(own, len(FORMER)):
        wrapped = _former(own, task, result)
        kind.sources = ()
        remarks: functools.cached_property[list[str]] = functools.cached_property(lambda self: [])
        remarks.__set_name__(kind, "warnings")
        kind.warnings = remarks
    elif _takes(own, 1):
        wrapped = _present(own, task)
    else:
        return  # whatever it is, the call of it says so
    kind.perturb = wrapped


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a method can be called with so many arguments beside `self`."""
    try:
        inspect.signature(function).bind(None, *range(count))
    except TypeError:
        return False
    return True


def _former(
    own: Callable[..., Any], task_class: type[Any], result_class: type[Any]
) -> Callable[..., Any]:
    """A method with the former arguments that takes a task as well."""

    @functools.wraps(own)
    def perturb(self: Any, *given: Any, **named: Any) -> Any:
        task = given[0] if len(given) == 1 and not named else named.get("task")
        if not isinstance(task, task_class):
            return own(self, *given, **named)
        said: list[str] = []
        self.sources, self.warnings = task.sources, said
        try:
            images = own(self, task.model, task.images, task.labels, task.threat, task.generator)
        finally:
            self.sources = ()
        return result_class(images=images, remarks=tuple(map(str, self.warnings)))

    perturb.former = True  # type: ignore[attr-defined]
    return perturb


def _present(own: Callable[..., Any], task_class: type[Any]) -> Callable[..., Any]:
    """A method with a task that takes the former arguments as well."""

    @functools.wraps(own)
    def perturb(self: Any, *given: Any, **named: Any) -> Any:
        if len(given) + len(named) != len(FORMER):
            return own(self, *given, **named)
        name, plugin = type(self).__name__, plugin_of(type(self))
        text = f"plugin {plugin!r}: {name}.perturb is called as {_WHAT}"
        warnings.warn(text, PluginDeprecationWarning, stacklevel=2)
        fields = dict(zip(FORMER, given, strict=False)) | named
        return own(self, task_class(**fields, sources=getattr(self, "sources", ()))).images

    return perturb
