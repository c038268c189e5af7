"""Configurations: from text on the command line to a checked, frozen dataclass, and back.

A configuration is a frozen dataclass whose fields all have defaults. Values from a file or from
`--set key=value` are held against the annotation of each field as strict JSON would be: "abc" or
20.0 is no int and "true" is no bool, but an int is a float and a list is a tuple.

A field that a later version adds is named in the class attribute `ADDED`, so that earlier runs stay
the same runs: see `robustdd_bench.identity`.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import difflib
import inspect
import json
import math
import textwrap
import tomllib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.guard import StoppedError, guard, plain_text, plugin_of, told
from robustdd_bench.identity import added_fields, earlier_values, identity

_DATES = (datetime.date, datetime.time)


class ConfigField(NamedTuple):
    """One field of a configuration, as it is shown to a user."""

    name: str
    type: str
    default: Any
    doc: str
    added: str = ""
    """The version in which it was added, where it came later."""


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
    except tomllib.TOMLDecodeError:
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
    values: dict[str, Any] = {}
    for key, value in overrides.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            known = f"known: {', '.join(fields)}" if fields else "it has no settings"
            hint = f"did you mean {close[0]!r}?" if close else known
            raise UsageError(f"{owner}: unknown key {key!r}; {hint}")
        values[key] = _checked(fields[key], value, f"{owner}: {key}")
    try:
        return config_class(**values)
    except ValueError as error:
        raise UsageError(f"{owner}: {plain_text(error) or type(error).__name__}") from error


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


def describe_config(config_class: type[Any]) -> list[ConfigField]:
    """Every field with its type, default and the docstring below it in the source."""
    types, docs = _source_of_fields(config_class)
    later = added_fields(config_class)
    described = []
    for field in dataclasses.fields(config_class):
        if not field.init:
            continue
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        shown = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
        described.append(
            ConfigField(
                field.name,
                types.get(field.name, shown),
                default,
                docs.get(field.name, ""),
                later[field.name].version if field.name in later else "",
            )
        )
    return described


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
        if isinstance(value, str) and value.lower() == "none":
            try:
                return adapter.validate_json(b"null", strict=True)
            except ValidationError:
                pass
        first = error.errors()[0]
        inside = ".".join(str(part) for part in first["loc"] if isinstance(part, int))
        place = f"{where}[{inside}]" if inside else where
        raise UsageError(f"{place}: {first['msg']}, not {first['input']!r}") from error
    # A validator of the field's own may make a number of a text such as "inf".
    if not _finite(result):
        raise UsageError(f"{where}: NaN and infinity are not accepted")
    return result


def _finite(value: Any) -> bool:
    """Whether no number inside is NaN or infinite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(_finite(item) for item in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_finite(item) for item in value)
    return True


def _source_of_fields(config_class: type[Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Annotations and docstrings by field; what has no source is left out."""
    types: dict[str, str] = {}
    docs: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for i, statement in enumerate(body):
            if not (
                isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            ):
                continue
            name = statement.target.id
            types[name] = ast.unparse(statement.annotation)
            docs.pop(name, None)
            after = body[i + 1] if i + 1 < len(body) else None
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = after.value.value
                if isinstance(text, str):
                    docs[name] = inspect.cleandoc(text)
    return types, docs
