"""Functions and classes that an attack has replaced: put back and named.

An attack holds a copy of the student, but copies share their classes: `nn.Linear.forward = ...`
would reach the judged student. What is looked at are the classes of the student's modules and their
bases, `torch.Tensor` and `torch.nn.functional`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

_SET_BY_PYTHON = frozenset({"__slotnames__", "__annotations__", "__annotations_cache__"})
"""Attributes that the interpreter and the module `copy` add to classes."""


class Patches:
    """Contents of classes and modules at one moment.

    Args:
        modules: networks whose classes are looked at.
    """

    def __init__(self, modules: Iterable[Any]) -> None:
        places: dict[int, Any] = {}
        for module in modules:
            for part in module.modules():
                for each in type(part).__mro__:
                    places[id(each)] = each
        for name in ("torch", "torch.nn.functional"):
            if name in sys.modules:
                whole = sys.modules[name]
                place = whole.Tensor if name == "torch" else whole
                places[id(place)] = place
        places.pop(id(object), None)
        self._before = [(place, dict(vars(place))) for place in places.values()]

    def restore(self) -> list[str]:
        """Put back what was replaced since, and say what it was."""
        changed = []
        for place, before in self._before:
            now = vars(place)
            if len(now) == len(before) and all(map(_same, now.values(), before.values())):
                continue
            for name in list(now.keys() | before.keys()):
                old, new = before.get(name, _NONE), now.get(name, _NONE)
                if old is new or name in _SET_BY_PYTHON:
                    continue
                if isinstance(place, type):
                    changed.append(f"{place.__qualname__}.{name}")
                elif old is _NONE:  # a module may import more of itself when it is first used
                    continue
                else:
                    changed.append(f"{place.__name__}.{name}")
                _put_back(place, name, old)
        return changed


_NONE = object()


def _same(one: Any, other: Any) -> bool:
    return one is other


def _put_back(place: Any, name: str, value: Any) -> None:
    # `type.__setattr__`: a metaclass of a stranger may have its own.
    put: Callable[..., Any] = type.__setattr__ if isinstance(place, type) else setattr
    drop: Callable[..., Any] = type.__delattr__ if isinstance(place, type) else delattr
    if value is _NONE:
        drop(place, name)
    else:
        put(place, name, value)
