"""What pages have in common: templates that escape, a policy by hashes, units for readers.

A page is one file that needs nothing but a browser. Its policy lets nothing run but what is named
by its hash, all text is escaped, and texts of strangers hold no control or direction characters.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.text.terminal import hides, rate_text

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).with_name("templates")
"""The stylesheet and the axes of every page."""


class Trusted:
    """Our own stylesheet, script or SVG, which is not escaped; nothing of a stranger's is in it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __html__(self) -> str:
        return self._text


def environment(*folders: Path) -> jinja2.Environment:
    """Templates of these folders and those that pages share.

    Args:
        *folders: a page's own.
    """
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    found.filters |= {
        "percent": lambda value: f"{100 * value:.1f}",
        "optional": lambda value: "–" if value is None else f"{100 * value:.1f}",
        "interval": lambda value: f"{100 * value.low:.1f}–{100 * value.high:.1f}",
        "eps": eps_label,
        "seconds": seconds,
        "rate": rate_text,
        "mebibytes": mebibytes,
        "setting": setting,
        "norm": lambda norm: {"Linf": "L∞", "L2": "L2"}[norm],
    }
    return found


def _finalize(value: Any) -> Any:
    """Texts of strangers hold no control or direction characters when they reach the page."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return visible(value)


def visible(text: str) -> str:
    """The text with a sign in place of characters that hide or turn others."""
    return "".join("\ufffd" if hides(character) else character for character in text)


def content_hash(text: str) -> str:
    """The hash by which a policy allows a stylesheet or script."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG, from its header; None if it is none."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def png_uri(data: bytes) -> str:
    """A PNG as a part of a page."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def seconds(value: float) -> str:
    """A time as people read it."""
    if value < 0.05:
        return "< 0.1 s"
    if value < 100:
        return f"{value:.1f} s"
    return f"{value:,.0f} s" if value < 6000 else f"{value / 3600:,.1f} h"


def mebibytes(value: float) -> str:
    """A size in MiB."""
    return f"{value / 2**20:,.0f} MiB"


def setting(value: Any) -> str:
    """A setting's value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
