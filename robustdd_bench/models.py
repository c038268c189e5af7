"""The base of what is written as JSON or TOML: strict, frozen, and able to grow.

A field that is added later is named in `ADDED` and has a default. While it holds that default it is
left out wherever the model is written or hashed, so that what was written before keeps its hash.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class StrictModel(BaseModel):
    """No unknown keys, no NaN, no infinity."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out while they hold their default."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {
            key: value
            for key, value in written.items()
            if key not in self.ADDED or getattr(self, key) != fields[key].default
        }
