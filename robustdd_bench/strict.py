"""The base of what is written as JSON or TOML: strict, frozen, and able to grow.

A field that is added later is named in `ADDED` and has a default: see `robustdd_bench.identity`.
While it holds that default it is left out wherever the model is written or hashed, so that what was
written before keeps its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from robustdd_bench.errors import UsageError
from robustdd_bench.files import parse_json, require_regular
from robustdd_bench.identity import Added, added_fields, same_value

Model = TypeVar("Model", bound="StrictModel")


MAX_TENSORS = 10_000
"""Of a teacher that is stored with a set."""


class StrictModel(BaseModel):
    """No unknown keys, no NaN, no infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    ADDED: ClassVar[Mapping[str, str | Added]] = {}
    """Later fields, with the version in which each came; left out while they hold their default."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        for key in added_fields(type(self)):
            field = type(self).model_fields[key]
            default = field.get_default(call_default_factory=True)
            if same_value(getattr(self, key), default):
                written.pop(key, None)
        return written


def read_bounded(path: Path, what: str, max_bytes: int) -> bytes:
    """Read a file that may be a stranger's.

    Args:
        path: where it is.
        what: what it should be, with its article, for the message.
        max_bytes: its largest size.

    Raises:
        UsageError: it is missing, no regular file, too large, or cannot be read.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise UsageError(f"no file {path}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > max_bytes:
        size = f"{max_bytes >> 20} MiB" if max_bytes >= 2**20 else f"{max_bytes >> 10} KiB"
        raise UsageError(f"{path} is not {what}: it is larger than {size}")
    return content


def validated(kind: type[Model], content: bytes, path: Path, what: str) -> Model:
    """A strict model from the JSON in a file.

    Raises:
        UsageError: it is none, or not strict JSON; the message names up to five keys.
    """
    parse_json(content, path)
    try:
        return kind.model_validate_json(content, strict=True)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))[:100] or what}: {item['msg'][:200]}"
            for item in error.errors(include_url=False, include_input=False)[:5]
        )
        raise UsageError(f"{path} is not {what}: {problems}") from error
    except UsageError as error:
        raise UsageError(f"{path} is not {what}: {error}") from error
