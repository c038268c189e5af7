"""The fields of a configuration as `robustdd show` tells them: types, ranges, docstrings."""

from __future__ import annotations

import dataclasses
import typing
from types import UnionType
from typing import Any, Literal, NamedTuple, Union

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from robustdd_bench.identity import added_fields
from robustdd_bench.text.sources import source_of_fields
from robustdd_bench.text.terminal import number_text, one_line


class ConfigField(NamedTuple):
    """One field of a configuration, as it is shown to a user."""

    name: str
    type: str
    default: Any
    doc: str
    added: str = ""
    """The version in which it was added, where it came later."""
    range: str = ""
    """The numbers that it takes, as an interval such as "[1, 10000]" or "(0, 1]"; "" for any."""
    group: str = ""
    """What the class that declares it says of itself, without a full stop."""


def describe_config(config_class: type[Any]) -> list[ConfigField]:
    """Every field with its type, default and the docstring below it in the source."""
    types, docs = source_of_fields(
        base for base in reversed(config_class.__mro__) if dataclasses.is_dataclass(base)
    )
    later = added_fields(config_class)
    hints = _hints(config_class)
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
                _type_text(hints[field.name]) if hints else types.get(field.name, shown),
                default,
                docs.get(field.name, ""),
                later[field.name].version if field.name in later else "",
                _interval(hints[field.name]) if hints else "",
                _group(config_class, field.name),
            )
        )
    return described


def _group(config_class: type[Any], name: str) -> str:
    """The first line of the docstring of the class that was the first to declare a field."""
    for base in reversed(config_class.__mro__):
        if name in vars(base).get("__annotations__", {}):
            lines = (vars(base).get("__doc__") or "").strip().splitlines()
            if not lines or lines[0].startswith(f"{base.__name__}("):  # a dataclass's own
                return ""
            return one_line(lines[0]).removesuffix(".")
    return ""


def _hints(config_class: type[Any]) -> dict[str, Any]:
    """The annotations, resolved; none where one of them cannot be."""
    try:
        return typing.get_type_hints(config_class, include_extras=True)
    except Exception:  # whatever an annotation of a stranger can raise
        return {}


def _type_text(hint: Any) -> str:
    """An annotation as one writes it, without what belongs to the range."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _type_text(inside[0])
    if origin in (Union, UnionType):
        return " | ".join(map(_type_text, inside))
    if origin is Literal:
        return " | ".join(map(repr, inside))
    if hint is None or hint is type(None):
        return "None"
    if hint is Ellipsis:
        return "..."
    name = str(getattr(origin or hint, "__name__", "") or repr(hint))
    return f"{name}[{', '.join(map(_type_text, inside))}]" if inside else name


def _interval(hint: Any) -> str:
    """The numbers that an annotation takes, as an interval; "" where they are no numbers."""
    try:
        parts = [TypeAdapter(hint).json_schema()]
    except PydanticUserError:
        return ""
    for part in parts:
        parts += [*part.get("anyOf", ()), *filter(None, [part.get("items")])]
        low = part.get("minimum", part.get("exclusiveMinimum"))
        high = part.get("maximum", part.get("exclusiveMaximum"))
        if low is not None or high is not None:
            left = "(" if "minimum" not in part else "["
            right = ")" if "maximum" not in part else "]"
            first = "-inf" if low is None else number_text(low)
            return f"{left}{first}, {'inf' if high is None else number_text(high)}{right}"
    return ""
