"""Configurations: from text on the command line to a checked, frozen dataclass, and back.

A configuration is a frozen dataclass whose fields all have defaults. Values from a file or from
`--set key=value` are held against the annotation of each field as strict JSON would be: "abc" or
20.0 is no int and "true" is no bool, but an int is a float and a list is a tuple. A range belongs
to the annotation:

    @settings
    class Config:
        steps: Annotated[int, Field(ge=1, le=10_000)] = 20

        @model_validator(mode="after")
        def _fits(self) -> Self:
            ...  # a rule between fields: raise ValueError

`settings` holds a configuration that is made in Python against the same annotations.

A class that hands on what it does not know names the field that takes it, a mapping, in the class
attribute `FURTHER`: every key that is no field goes there.

A field that a later version adds is named in the class attribute `ADDED`, so that earlier runs stay
the same runs: see `robustdd_bench.identity`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import inspect
import json
import math
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails, PydanticSerializationError, from_json, to_json

from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.guard import StoppedError, guard, plain_text, plugin_of, told
from robustdd_bench.identity import earlier_values, identity
from robustdd_bench.text.terminal import number_text

_DATES = (datetime.date, datetime.time)
_RANGES = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
}
"""What pydantic calls the ways to be out of a range, and what we say."""

Kind = TypeVar("Kind")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(kind: type[Kind]) -> type[Kind]:
    """A class decorator: a frozen, keyword-only dataclass that checks its values when it is made.

    Values outside of a field's range, of another type, NaN, infinity and unknown names are a
    `pydantic.ValidationError`, which is a ValueError.
    """
    return _checked_dataclass(kind, slots=True)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def mixin_settings(kind: type[Kind]) -> type[Kind]:
    """As `settings`, for a class that is one base of several of a configuration."""
    return _checked_dataclass(kind, slots=False)


def _checked_dataclass(kind: type[Kind], *, slots: bool) -> type[Kind]:
    make: Any = pydantic.dataclasses.dataclass(
        config=ConfigDict(extra="forbid", allow_inf_nan=False),
        frozen=True,
        kw_only=True,
        slots=slots,
    )
    return cast("type[Kind]", make(kind))


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `key=value` texts; a value is a TOML value, or else a bare string.

    Raises:
        UsageError: a text has no "=" or no key, or a key is given twice.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key:
            raise UsageError(f"--set needs key=value, not {text!r}")
        if key in values:
            raise UsageError(f"--set gives {key!r} twice")
        values[key] = _toml_value(value)
    return values


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    # A line break could smuggle in more keys, and no configuration holds a date.
    if set(table) != {"value"} or isinstance(table["value"], _DATES):
        return text
    return table["value"]


def assignment(key: str, value: Any) -> str:
    """The text `key=value` that `parse_assignments` reads back as that JSON value.

    None is written "none", which a field that may be None and is no text takes for it.
    """
    if isinstance(value, str):
        bare = f"{key}={value}"
        if parse_assignments([bare])[key] == value:
            return bare
    return f"{key}={'none' if value is None else _as_toml(value)}"


def _as_toml(value: Any) -> str:
    """A JSON value other than null as TOML."""
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        inside = (f"{_as_toml(str(key))} = {_as_toml(item)}" for key, item in value.items())
        return "{" + ", ".join(inside) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_as_toml(item) for item in value) + "]"
    return json.dumps(value, allow_nan=False)


def check_options(function: Any, options: Mapping[str, Any], owner: str) -> None:
    """Hold options against the keywords of the function that gets them, as settings are.

    Its first two arguments are the harness's. Keywords that it does not name, where it takes any,
    and annotations that cannot be read are left to the function.

    Args:
        function: a loader of data or a builder of networks.
        options: values by keyword, as a track holds them.
        owner: whose they are; it begins every message.

    Raises:
        UsageError: it has no such keyword, or a value is of the wrong type or out of range.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[2:]
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # whatever an annotation of a stranger can raise
        return
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key, value in options.items():
        if key not in named and not anything:
            raise _unknown_key(owner, key, named)
        if key in named and key in hints:
            with contextlib.suppress(PydanticUserError):
                _checked(TypeAdapter(hints[key]), value, f"{owner}: {key}")


def _unknown_key(owner: str, key: object, known: Sequence[str]) -> UsageError:
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    listed = f"known: {', '.join(known)}" if known else "it has no settings"
    hint = f"did you mean {close[0]!r}?" if close else listed
    return UsageError(f"{owner}: unknown key {key!r}; {hint}")


def config_class(plugged: Any, owner: str) -> type[Any]:
    """The nested `Config` of a distiller or attack.

    Raises:
        PluginError: there is none.
    """
    config = getattr(plugged, "Config", None)
    if not isinstance(config, type):
        raise PluginError(f"{owner} has no nested dataclass `Config`")
    return config


def build_config(config_class: type[Any], overrides: Mapping[str, Any], owner: str) -> Any:
    """The configuration with `overrides` in place of its defaults.

    The text "none" stands for None in a field that may be None and is no text, since TOML cannot
    write None.

    Args:
        config_class: a frozen dataclass whose fields all have defaults.
        overrides: values by field, as TOML or JSON would hold them.
        owner: whose configuration it is, e.g. "method 'mat'"; it begins every message.

    Raises:
        UsageError: an unknown key, a value of the wrong type, NaN or infinity, or a value that
            the class itself refuses.
        PluginError: the class is no configuration.
    """
    plugin = plugin_of(config_class)
    try:
        with guard(plugin, owner):
            return _build_config(config_class, overrides, owner)
    except (StoppedError, TypeError) as error:
        raise PluginError(
            f"plugin {plugin!r}: {owner}: its configuration cannot be built: {told(error)}"
        ) from error


def _build_config(config_class: type[Any], overrides: Mapping[str, Any], owner: str) -> Any:
    fields = _settable(config_class, owner)
    further: str | None = getattr(config_class, "FURTHER", None)
    values: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for key, value in overrides.items():
        if key in fields and key != further:
            values[key] = _checked(fields[key], value, f"{owner}: {key}")
        elif further is not None:
            unknown[key] = value
        else:
            raise _unknown_key(owner, key, list(fields))
    if further is not None and unknown:
        values[further] = _checked(fields[further], unknown, owner)
    try:
        return config_class(**values)
    except ValidationError as error:
        problems = "; ".join(problem(item, "") for item in error.errors())
        raise UsageError(f"{owner}: {problems}") from error
    except ValueError as error:
        raise UsageError(f"{owner}: {plain_text(error) or type(error).__name__}") from error


def problem(item: ErrorDetails, top: str = "(top level)") -> str:
    """What pydantic found wrong, in one line that begins with the place.

    Args:
        item: one of `ValidationError.errors()`.
        top: what stands for the place where the whole is wrong.
    """
    place = ".".join(map(str, item["loc"])) or top
    if item["type"] == "value_error":
        text = plain_text(item["ctx"]["error"])
        return f"{place}: {text}" if place else text
    if item["type"] not in _RANGES:
        return f"{place}: {item['msg']}"
    return f"{place}{_reason(item)}".strip()


def _reason(item: ErrorDetails) -> str:
    words, context = _RANGES.get(item["type"]), item.get("ctx", {})
    if words is None:
        return f": {item['msg']}, not {item['input']!r}"
    shown = {key: number_text(v) if isinstance(v, float) else v for key, v in context.items()}
    return f" {words.format(**shown)}, not {item['input']!r}"


def recorded_config(config_class: type[Any], values: Mapping[str, Any], owner: str) -> Any:
    """The configuration that `config_to_dict` wrote, now or before later fields were added.

    Args:
        config_class: a frozen dataclass whose fields all have defaults.
        values: what `config_to_dict` returned, or what a record holds.
        owner: whose configuration it is; it begins every message.

    Raises:
        UsageError, PluginError: as `build_config`.
    """
    _settable(config_class, owner)
    return build_config(config_class, {**earlier_values(config_class), **values}, owner)


def config_to_dict(config: Any) -> dict[str, Any]:
    """The fields that are part of the configuration's identity, as values that JSON can hold.

    These are all but later fields with the value that earlier runs are taken to have had.
    `recorded_config` takes them back.

    Raises:
        PluginError: a value is NaN, infinite or nothing that JSON can hold, or the class names
            later fields wrongly.
    """
    try:
        return _plain_values(config, identity(config))
    except ValueError as error:
        raise PluginError(f"{type(config).__qualname__}: {error}") from error


def all_settings(config: Any) -> dict[str, Any]:
    """Every field as a value that JSON can hold; `build_config` takes them back.

    Raises:
        PluginError: a value is NaN, infinite or nothing that JSON can hold.
    """
    return _plain_values(config, dataclasses.asdict(config))


def _plain_values(config: Any, plain: dict[str, Any]) -> dict[str, Any]:
    owner = type(config).__qualname__
    if not _finite(plain):
        raise PluginError(f"{owner} holds NaN or infinity, which no record can hold")
    try:
        values: dict[str, Any] = from_json(to_json(plain))
    except PydanticSerializationError as error:
        raise PluginError(f"{owner} cannot be written as JSON: {error}") from error
    return values


def _settable(config_class: type[Any], owner: str) -> dict[str, TypeAdapter[Any]]:
    """What checks each field that a user may set."""
    if not (isinstance(config_class, type) and dataclasses.is_dataclass(config_class)):
        raise PluginError(f"{owner}: its Config is not a dataclass")
    try:
        earlier_values(config_class)
    except ValueError as error:
        raise PluginError(f"{owner}: {error}") from error
    try:
        hints = typing.get_type_hints(config_class, include_extras=True)
        return {
            field.name: TypeAdapter(hints[field.name])
            for field in dataclasses.fields(config_class)
            if field.init
        }
    except Exception as error:  # whatever an annotation of a stranger can raise
        raise PluginError(f"{owner}: the types of its Config cannot be read: {error}") from error


def _checked(adapter: TypeAdapter[Any], value: Any, where: str) -> Any:
    if not _finite(value):
        raise UsageError(f"{where}: NaN and infinity are not accepted")
    try:
        text = to_json(value)
    except PydanticSerializationError as error:
        raise UsageError(f"{where}: {value!r} is nothing a file can hold") from error
    try:
        result = adapter.validate_json(text, strict=True)
    except ValidationError as error:
        for other in _other_readings(value):
            try:
                return adapter.validate_json(to_json(other), strict=True)
            except ValidationError:
                pass
        first = error.errors()[0]
        inside = ".".join(str(part) for part in first["loc"] if isinstance(part, int))
        place = f"{where}[{inside}]" if inside else where
        raise UsageError(f"{place}{_reason(first)}") from error
    # A validator of the field's own may make a number of a text such as "inf".
    if not _finite(result):
        raise UsageError(f"{where}: NaN and infinity are not accepted")
    return result


def _other_readings(value: Any) -> Iterator[Any]:
    """What a text may mean where a field takes no text: none, .5, 5. or 8/255."""
    if isinstance(value, str):
        if value.lower() == "none":
            yield None
        elif re.fullmatch(r"[+-]?([0-9]+\.|\.[0-9]+)", value):
            yield float(value)
        elif re.fullmatch(r"[0-9]+(\.[0-9]+)?/[0-9]*[1-9][0-9]*", value):
            numerator, _, denominator = value.partition("/")
            yield float(numerator) / float(denominator)
    elif isinstance(value, list) and value:
        readings = [[item, *_other_readings(item)][-1] for item in value]
        if readings != value:
            yield readings


def _finite(value: Any) -> bool:
    """Whether no number inside is NaN or infinite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(_finite(item) for item in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_finite(item) for item in value)
    return True
