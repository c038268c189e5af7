"""The picture beside a published run: a plain PNG that shows its set, and nothing else.

A picture from a stranger could be a page, a bomb of compressed zeros or another picture. It is held
to the chunks that make an image, to the size that its set has, and to the set's own pixels; which
encoder wrote it does not matter.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.figures import distilled_grid, grid_size
from robustdd_bench.errors import UsageError
from robustdd_bench.records.record import Record
from robustdd_bench.strict import read_bounded

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNKS = {b"IHDR", b"IDAT", b"IEND"}
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 2**25
RGB8 = bytes([8, 2, 0, 0, 0])
"""Eight bits, three colours, deflate, no interlacing: what a preview is written with."""


def check_preview(path: Path, record: Record, distilled: DistilledSet | None) -> None:
    """Raise UsageError unless the file is a plain PNG of the size of the set's picture.

    Args:
        path: the picture.
        record: a complete record.
        distilled: its set, whose pixels the picture has to show; None if it is not published.
    """
    data, said = record.data, record.distilled
    assert data is not None
    assert said is not None
    width, height = grid_size(data.shape, said.images_per_class)
    if width * height > MAX_PIXELS:
        raise UsageError(f"{path.name}: a picture of {width}x{height} pixels is too large")
    try:
        content = read_bounded(path, "a preview", MAX_BYTES)
    except UsageError as error:
        raise UsageError(f"{path.name} is missing" if not path.exists() else str(error)) from error
    pixels = zlib.decompressobj()
    left, seen = height * (1 + 3 * width), []
    for kind, body in _chunks(content, path.name):
        seen.append(kind)
        if kind == b"IHDR" and body != (width.to_bytes(4) + height.to_bytes(4) + RGB8):
            raise UsageError(f"{path.name} is not an RGB picture of {width}x{height} pixels")
        if kind == b"IDAT":
            try:
                left -= len(pixels.decompress(body, left + 1))
            except zlib.error as error:
                raise UsageError(f"{path.name} is damaged: {error}") from error
            if left < 0:
                raise UsageError(f"{path.name} unpacks to more than {width}x{height} pixels")
    whole = seen[:1] == [b"IHDR"] and seen[-1:] == [b"IEND"] and seen.count(b"IHDR") == 1
    if left or not pixels.eof or pixels.unused_data or not whole or seen.count(b"IEND") != 1:
        raise UsageError(f"{path.name} is not a whole PNG")
    if distilled is not None and not _shows(content, distilled, data.num_classes):
        raise UsageError(f"{path.name} is not a picture of the set")


def _chunks(content: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk; anything else raises UsageError."""
    if content[:8] != SIGNATURE:
        raise UsageError(f"{name} is not a PNG")
    at = 8
    while at < len(content):
        size, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        body, end = content[at + 8 : at + 8 + size], at + 12 + size
        if end > len(content):
            raise UsageError(f"{name} is not a whole PNG")
        if kind not in CHUNKS:
            raise UsageError(f"{name} holds more than an image: a chunk {kind[:4]!r}")
        if zlib.crc32(kind + body) != int.from_bytes(content[end - 4 : end]):
            raise UsageError(f"{name} is damaged: a chunk has another checksum")
        yield kind, body
        if kind == b"IEND" and end != len(content):
            raise UsageError(f"{name} goes on after its end")
        at = end


def _shows(content: bytes, distilled: DistilledSet, num_classes: int) -> bool:
    """Whether the picture has the set's pixels; rounding may differ by one."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        shown = np.asarray(picture).astype(np.int16)
    wanted = distilled_grid(distilled, num_classes).permute(1, 2, 0).numpy().astype(np.int16)
    return shown.shape == wanted.shape and bool((np.abs(shown - wanted) <= 1).all())
