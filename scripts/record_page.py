"""docs/records.md: what stands in a record, from the models that validate it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from robustdd_bench.records.record import Record
from robustdd_bench.text.sources import source_of_fields

BEGIN, END = "<!-- begin parts -->", "<!-- end parts -->"


def with_parts(text: str) -> str:
    """The page with a table for the record, and one for each of its parts, between its marks."""
    schema = Record.model_json_schema()
    parts = [f"## The record\n\n{_table(Record, schema, schema)}"]
    for model in _models():
        definition = schema["$defs"].get(model.__name__)
        if definition is not None:
            about = inspect.cleandoc(model.__doc__ or "")
            table = _table(model, definition, schema)
            parts.append(f"## {model.__name__}\n\n{about}\n\n{table}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + "\n".join([f"{BEGIN}\n", *parts, END]) + after


def _models() -> Iterator[type[BaseModel]]:
    """The models that a record is made of, in the order in which it names them."""
    seen: list[Any] = [Record]
    for model in seen:
        for field in model.model_fields.values():
            for found in _inside(field.annotation):
                if found not in seen:
                    seen.append(found)
    yield from seen[1:]


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _inside(part)


def _table(model: type[BaseModel], definition: dict[str, Any], schema: dict[str, Any]) -> str:
    notes = _notes(model)
    rows = [("key", "value", ""), ("---", "---", "---")]
    rows += [
        (f"`{key}`", _kind(definition["properties"][key], schema), notes.get(key, ""))
        for key in model.model_fields
    ]
    return "".join(f"| {' | '.join(cells).rstrip()} |\n" for cells in rows)


def _notes(model: type[BaseModel]) -> dict[str, str]:
    """The text below each field, of the model and of those that it inherits from."""
    classes = [
        base
        for base in reversed(model.__mro__)
        if issubclass(base, BaseModel) and not base.__module__.startswith("pydantic")
    ]
    _, docs = source_of_fields(classes)
    return {name: " ".join(text.split()).replace("|", "\\|") for name, text in docs.items()}


def _kind(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """A type of the JSON Schema in words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if "properties" in schema["$defs"][name] else name
    if "anyOf" in value:
        return " or ".join(_kind(part, schema) for part in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type", "any")
    if kind == "array":
        if "prefixItems" in value:
            kinds = list(dict.fromkeys(_kind(part, schema) for part in value["prefixItems"]))
            return f"{len(value['prefixItems'])} values: {', '.join(kinds)}"
        return f"list: {_kind(value.get('items', {}), schema)}"
    if kind == "string" and value.get("pattern", "").endswith("{64}$"):
        return "SHA-256"
    words = {"integer": "whole number", "null": "null", "object": "object", "boolean": "boolean"}
    return words.get(str(kind), {"string": "text"}.get(str(kind), str(kind)))
