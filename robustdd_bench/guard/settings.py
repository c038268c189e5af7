"""Settings that a plugin may change: how one is read, written back and named.

A `SavedSettings` holds their values before a call. Nothing is imported for it: settings of torch,
numpy and matplotlib are looked at only where these are loaded; one that a plugin loads itself is
looked at as soon as it is there, before the plugin can change it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


def arrow(before: Any, after: Any) -> str:
    """How a change of a short value is shown."""
    return f"{before} -> {after}"


def silent(before: Any, after: Any) -> str:
    """How a change is shown whose values say nothing to a reader."""
    return ""


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that a plugin may change."""

    name: str
    """Plain words, e.g. "torch's default dtype"."""
    read: Callable[[], Any]
    """A value that stays what it is when the setting changes; may raise where there is none."""
    write: Callable[[Any], object]
    """Puts a value back."""
    differs: Callable[[Any, Any], Any] = operator.ne
    show: Callable[[Any, Any], str] = arrow
    """The change in a few words."""
    named: Callable[[Any, Any], bool] = lambda before, after: True
    """Whether a change is worth a word: numbers drawn from a global generator are not."""


LOST = "it cannot be restored"


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that was found changed."""

    setting: Setting
    detail: str
    named: bool
    restored: bool

    def text(self) -> str:
        """E.g. "torch's default dtype (torch.float32 -> torch.float64)"."""
        facts = [self.detail] if self.detail else []
        facts += [] if self.restored else [LOST]
        return f"{self.setting.name} ({'; '.join(facts)})" if facts else self.setting.name


_MISSING = object()


def _read(setting: Setting) -> Any:
    try:
        return setting.read()
    except Exception:  # not there in this version, or not readable just now
        return _MISSING


class SavedSettings:
    """The values of all settings at one moment.

    Args:
        groups: settings by the module that has to be loaded for them; "" for none. A group's value
            is made when it is first needed.
    """

    def __init__(self, groups: Mapping[str, Callable[[], Sequence[Setting]]]) -> None:
        self._groups = groups
        self._values: dict[str, list[tuple[Setting, Any]]] = {}
        for module in groups:
            if not module or module in sys.modules:
                self.add(module)

    def missing(self) -> set[str]:
        """The modules whose settings are not in it."""
        return self._groups.keys() - self._values.keys()

    def add(self, module: str) -> None:
        """Read the settings of a module, unless that was done."""
        if module not in self._values:
            self._values[module] = [(s, _read(s)) for s in self._groups[module]()]

    def restore(self) -> list[Change]:
        """Put back what has changed since; say what it was.

        All is looked at before anything is written: some settings write others.
        """
        found = self._differing()
        left = found
        for _ in range(3):  # to put one back may change another
            for setting, before, _after in left:
                with contextlib.suppress(Exception):  # seen below
                    setting.write(before)
            left = self._differing() if left else []
        return [_change(*each) for each in found]

    def _differing(self) -> list[tuple[Setting, Any, Any]]:
        found = []
        for values in self._values.values():
            for setting, before in values:
                if before is _MISSING:
                    continue
                after = _read(setting)
                if after is _MISSING or _differ(setting, before, after):
                    found.append((setting, before, after))
        return found


def _differ(setting: Setting, before: Any, after: Any) -> bool:
    try:
        return bool(setting.differs(before, after))
    except Exception:  # values of a stranger that cannot even be compared
        return True


def _change(setting: Setting, before: Any, after: Any) -> Change:
    restored = not _differ(setting, before, _read(setting))
    try:
        detail = setting.show(before, "nothing" if after is _MISSING else after)
        named = after is _MISSING or setting.named(before, after)
    except Exception:
        detail, named = "", True
    return Change(setting, detail, named or not restored, restored)


class ImportWatch:
    """Calls back when one of some modules has just been imported, before anyone can use it.

    A finder of `sys.meta_path`; the abstract class of those takes long to import.

    Args:
        modules: names of top-level modules.
        loaded: called with the name of a module that is there now.
    """

    def __init__(self, modules: set[str], loaded: Callable[[str], None]) -> None:
        self._modules = modules
        self._loaded = loaded

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, with a loader that calls back; None for all other modules."""
        if fullname not in self._modules:
            return None
        self._modules.discard(fullname)  # so that the search below does not end here again
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            announcing: Any = _Announcing(spec.loader, self._loaded)
            spec.loader = announcing
        return spec


class _Announcing:
    """A loader that says when its module is loaded, and then is out of the way."""

    def __init__(self, inner: Any, loaded: Callable[[str], None]) -> None:
        self._inner = inner
        self._loaded = loaded

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        module: ModuleType | None = self._inner.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """As the module's own loader does; then call back."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._inner
        self._inner.exec_module(module)
        self._loaded(module.__name__)
