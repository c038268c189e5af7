"""The pictures of distilled sets on the page."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.board.schema import BoardContent
from robustdd_bench.drawing.rendering import png_size, png_uri

MAX_INLINE = 64 * 2**10
"""Previews up to so many bytes are part of the page; larger ones stay files beside it."""
MAX_INLINE_TOTAL = 8 * 2**20
EASY_WIDTH = 160
"""A picture that is narrower than so many pixels is enlarged, by a whole factor."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview: a class of the stylesheet where it is part of the page, else a file beside it."""

    width: int
    height: int
    css_class: str | None
    file: str
    columns: int = 1
    """Parts of a strip of few images a class, side by side; each has as many classes."""


def pictures_of(content: BoardContent, root: Path) -> tuple[dict[str, Preview], str]:
    """The preview of each row's first run by the path of its file, and rules that hold them.

    A set that is judged on several tracks has one picture, which is in the page once.

    Args:
        content: the board.
        root: its folder.
    """
    found: dict[str, Preview] = {}
    classes: dict[str, str] = {}
    rules: list[str] = []
    total = 0
    for track in content.tracks:
        for row in track.rows:
            file = row.runs[0].preview
            data = (root / file).read_bytes()
            width, height = png_size(data) or (1, 1)
            parts = columns(width, height, track.num_classes)
            digest = hashlib.sha256(data).hexdigest()
            name = classes.get(digest)
            if name is None and len(data) <= MAX_INLINE and total + len(data) <= MAX_INLINE_TOTAL:
                total += len(data)
                name = classes[digest] = f"set-{len(classes)}"
                rules.append(_rules(name, width, height, parts, png_uri(data)))
            found[file] = Preview(width, height, name, file, parts if name else 1)
    return found, "".join(rules)


def columns(width: int, height: int, classes: int) -> int:
    """Into how many columns a picture with a row a class is cut, so that it is no thin strip.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        classes: its rows.
    """
    if height <= 4 * width:
        return 1
    whole = [parts for parts in range(1, classes + 1) if classes % parts == 0]
    return min(whole, key=lambda parts: abs(width * parts - height / parts))


def _rules(name: str, width: int, height: int, parts: int, uri: str) -> str:
    factor = max(1, EASY_WIDTH // (width * parts))
    wide = width * factor
    image = f"background-image:url({uri})"
    if parts == 1:
        return f".{name}{{width:{wide}px;aspect-ratio:{width}/{height};{image}}}\n"
    rules = [
        f".{name}{{display:flex;width:max-content}}\n"
        f".{name} i{{width:{wide}px;aspect-ratio:{width * parts}/{height};"
        f"background-size:100% {100 * parts}%;image-rendering:pixelated;{image}}}\n"
    ]
    rules += [
        f".{name} i:nth-child({part + 1}){{background-position:0 {100 * part / (parts - 1):g}%}}\n"
        for part in range(parts)
    ]
    return "".join(rules)
