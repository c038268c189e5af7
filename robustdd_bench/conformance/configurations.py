"""Checks of what distillers and attacks share: the class, its configuration and its refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

from robustdd_bench.citations import citations
from robustdd_bench.config import build_config
from robustdd_bench.conformance.findings import FailedCheckError
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.plugins import SINGULAR, Entry

_WRONG_TYPES: tuple[Any, ...] = ("no such value", {"no": "such value"}, [[["x"]]])
_EDGES: tuple[Any, ...] = (-1, 0, -1.0, "")


def load_class(entry: Entry, base: type[Any]) -> type[Any]:
    """The class of the entry.

    Raises:
        FailedCheckError: it is no complete subclass of `base`, or its CITATION is not BibTeX.
        PluginError: it cannot be imported.
    """
    found = entry.load()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise FailedCheckError(f"{entry.target} is not a subclass of {base.__name__}")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise FailedCheckError(f"{entry.target} does not implement {', '.join(missing)}")
    try:
        citations(entry)
    except PluginError as error:
        raise FailedCheckError(str(error)) from error
    return found


def config_of(plugged: type[Any], entry: Entry) -> Any:
    """The configuration to check with: `quick_config` where there is one, else the defaults.

    Raises:
        FailedCheckError: `Config` is not a frozen dataclass whose fields all have defaults.
    """
    config_class = getattr(plugged, "Config", None)
    if not (isinstance(config_class, type) and dataclasses.is_dataclass(config_class)):
        raise FailedCheckError(f"{plugged.__name__} has no dataclass called Config")
    if not config_class.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise FailedCheckError("Config is not frozen; write @dataclass(frozen=True, ...)")
    needy = [
        field.name
        for field in dataclasses.fields(config_class)
        if field.init
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if needy:
        raise FailedCheckError(f"without a default: {', '.join(needy)}")
    config = build_config(config_class, {}, owner_of(entry))
    quick = getattr(plugged, "quick_config", None)
    if quick is None:
        return config
    config = quick() if callable(quick) else quick
    if not isinstance(config, config_class):
        raise FailedCheckError(f"quick_config gives {type(config).__name__}, not a Config")
    return config


def refuses_nonsense(config_class: type[Any], entry: Entry) -> str:
    """Check that unknown keys and wrong types are a UsageError.

    Raises:
        FailedCheckError: a field takes anything, or fails in another way.
    """
    further = getattr(config_class, "FURTHER", None)
    fields = [f.name for f in dataclasses.fields(config_class) if f.init and f.name != further]
    if further is None and _accepts(config_class, entry, "no_such_key_", 1):
        raise FailedCheckError("an unknown key is accepted")
    for name in fields:
        if all(_accepts(config_class, entry, name, value) for value in _WRONG_TYPES):
            raise FailedCheckError(f"field {name!r} accepts a value of any type")
        for value in _EDGES:
            _accepts(config_class, entry, name, value)
    what = "unknown keys and wrong types" if further is None else "wrong types"
    return f"{what} are refused ({len(fields)} fields)"


def _accepts(config_class: type[Any], entry: Entry, key: str, value: Any) -> bool:
    try:
        build_config(config_class, {key: value}, owner_of(entry))
    except UsageError as error:
        if "\n" in str(error):
            raise FailedCheckError(f"{key} = {value!r} is refused in more than one line") from error
        return False
    except Exception as error:
        raise FailedCheckError(
            f"{key} = {value!r} ends in {type(error).__name__}, not in a UsageError or in a "
            f"ValueError of __post_init__: {error}"
        ) from error
    return True


def owner_of(entry: Entry) -> str:
    """How messages name the entry."""
    return f"{SINGULAR[entry.kind]} {entry.name!r}"
