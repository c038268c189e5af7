"""What makes two things the same, and the one rule for fields that come later.

A run, a track, a configuration, stored experts and a record are known by a hash, or compared, over
their fields. A field that is added later is named in the class attribute `ADDED`, with the version
in which it came:

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        ADDED = {"warmup": "0.3.0"}
        iterations: int = 1000
        warmup: int = 0

While such a field holds its default it is left out of everything that is written, hashed or
compared, so whatever was made before the field existed keeps its identity. Any other value is part
of the identity, as that of any field. A subclass adds to what its bases name.

The default is what earlier runs are taken to have had. Where it changes after all, the first one
has to be said, or earlier records would change their meaning:
``ADDED = {"warmup": Added("0.3.0", was=0)}``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VERSION_PATTERN = r"[0-9]+(\.[0-9A-Za-z]+)*([.+-][0-9A-Za-z.+-]+)?"


class _TheDefault:
    """Stands for the default of the field."""

    def __repr__(self) -> str:
        return "the default"


_DEFAULT: Any = _TheDefault()


@dataclass(frozen=True, slots=True)
class Added:
    """When a field was added, and what everything made before it is taken to have."""

    version: str
    """Version of the distribution that was the first to have the field."""
    was: Any = _DEFAULT
    """The value of whatever was made before; by default the field's default."""


def added_fields(kind: type[Any]) -> dict[str, Added]:
    """The later fields of a class, its own and those of its bases.

    Raises:
        ValueError: `ADDED` is not a mapping of field names to versions.
    """
    found: dict[str, Added] = {}
    for base in reversed(kind.__mro__):
        own = base.__dict__.get("ADDED", {})
        if not isinstance(own, Mapping):
            raise ValueError(
                f"{base.__name__}.ADDED must map the name of a field to the version in which it "
                f'came, as in {{"warmup": "0.3.0"}}, not {own!r}'
            )
        for name, value in own.items():
            added = value if isinstance(value, Added) else Added(value)
            if not isinstance(added.version, str) or not re.fullmatch(
                VERSION_PATTERN, added.version
            ):
                raise ValueError(
                    f"{base.__name__}.ADDED[{name!r}] must be the version in which the field came, "
                    f'as "0.3.0", not {added.version!r}'
                )
            found[name] = added
    return found


def earlier_values(kind: type[Any]) -> dict[str, Any]:
    """For each later field of a dataclass, the value that whatever was made before it had.

    Raises:
        ValueError: `ADDED` names something that is no field, or a field without a default.
    """
    found = added_fields(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for name, added in found.items():
        if name not in fields:
            raise ValueError(f"{kind.__name__}.ADDED names {name!r}, which is no field of it")
        default = _default(fields[name])
        if default is dataclasses.MISSING:
            raise ValueError(
                f"{kind.__name__}.{name} was added later, so it needs a default: what was made "
                "before has no value for it"
            )
        values[name] = default if added.was is _DEFAULT else added.was
    return values


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def same_value(one: Any, other: Any) -> bool:
    """Equal, and not a truth value beside a number."""
    return bool(isinstance(one, bool) == isinstance(other, bool) and one == other)


def identity_fields(thing: Any) -> dict[str, Any]:
    """The fields of a dataclass that are part of its identity, with their values as they are.

    Raises:
        ValueError: its `ADDED` is not well-formed.
    """
    earlier = earlier_values(type(thing))
    return {
        name: value
        for name, value in _fields(thing)
        if name not in earlier or not same_value(value, earlier[name])
    }


def identity(thing: Any) -> Any:
    """As `dataclasses.asdict`, without the fields that are no part of the identity.

    The rule holds for dataclasses inside as well, also in lists, tuples and mappings.

    Raises:
        ValueError: an `ADDED` is not well-formed.
    """
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {name: identity(value) for name, value in identity_fields(thing).items()}
    if isinstance(thing, Mapping):
        return {key: identity(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [identity(value) for value in thing]
    return thing


def _fields(thing: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(thing):
        yield field.name, getattr(thing, field.name)
