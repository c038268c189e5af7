"""Texts and numbers of strangers that no honest file holds, wherever in it they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustdd_bench.errors import UsageError
from robustdd_bench.strict import Model, StrictModel, read_bounded, validated
from robustdd_bench.text.terminal import hides, one_line

LARGEST = 2**64
_TAG = re.compile(r"<[A-Za-z/!?]")
# What may be in the JSON of a value that has something suspicious.
_TRACE = re.compile(r"<[A-Za-z/!?]|\\u|[0-9]{20}")


def visible(text: str) -> str:
    """The text with escapes for what hides in it."""
    return "".join(
        character.encode("unicode_escape").decode() if hides(character) else character
        for character in text
    )


def suspicious_texts(model: StrictModel) -> list[str]:
    """A line for each text and number in a model that no honest file holds, with its key."""
    text = model.model_dump_json()
    # Long records of outcomes are not walked through for nothing.
    if text.isprintable() and not _TRACE.search(text):
        return []
    return list(suspicious(model.model_dump(mode="json")))


def read_statement(kind: type[Model], path: Path, what: str, max_bytes: int) -> Model:
    """What people state in a JSON file beside the records.

    Args:
        kind: its model.
        path: the file.
        what: what it should be, with its article, for messages.
        max_bytes: its largest size.

    Raises:
        UsageError: it is missing or too large, is no such model, or holds suspicious texts.
    """
    found = validated(kind, read_bounded(path, what, max_bytes), path, what)
    lines = suspicious_texts(found)
    if lines:
        raise UsageError(f"{path} is not {what}: {'; '.join(lines[:5])}")
    return found


def suspicious(value: Any, where: str = "") -> Iterator[str]:
    """What speaks against the texts and numbers in a JSON value, its keys included.

    Args:
        value: the value.
        where: the key that leads to it, for messages.

    Yields:
        A line each, with the key.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from suspicious(key, f"a key of {where}" if where else "a key")
            yield from suspicious(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, str):
        # Outcomes are long texts in which no character hides.
        if not value.isprintable() and any(map(hides, value)):
            yield f"{one_line(where, 100)}: a control or direction character"
        elif _TAG.search(value):
            yield f"{one_line(where, 100)}: a tag of HTML"
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            yield from suspicious(item, f"{where}.{index}")
    elif isinstance(value, int) and abs(value) > LARGEST:
        yield f"{one_line(where, 100)}: a number beyond 64 bits"
