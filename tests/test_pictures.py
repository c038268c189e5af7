"""Images as pixels: modes, depths, orientation, alpha; what has no sure meaning is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.pictures import images_in, numbered, read_picture

WHERE = Path("x.png")


def saved(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def test_eight_bits_are_read_as_they_are() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    found = read_picture(saved(Image.fromarray(pixels)), WHERE)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(pixels).permute(2, 0, 1))
    grey = read_picture(saved(Image.fromarray(pixels[..., 0])), WHERE)
    assert torch.equal(grey, torch.from_numpy(pixels[None, ..., 0]))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_shares_of_65535(file_format) -> None:
    pixels = np.array([[0, 1, 255], [256, 32768, 65535]], dtype=np.uint16)
    found = read_picture(saved(Image.fromarray(pixels), file_format), WHERE)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx([v / 65535 for v in pixels.flatten().tolist()])


def test_floats_must_lie_in_0_to_1() -> None:
    pixels = np.array([[0.0, 0.25], [0.5, 1.0]], dtype=np.float32)
    assert read_picture(saved(Image.fromarray(pixels), "TIFF"), WHERE)[0].tolist() == (
        pixels.tolist()
    )
    for factor, told in ((255, "from 0 to 255"), (-1, "from -1 to -?0"), (np.nan, "from nan")):
        with pytest.raises(UsageError, match=rf"x\.png has float pixels {told}"):
            read_picture(saved(Image.fromarray(pixels * np.float32(factor)), "TIFF"), WHERE)


def test_whole_numbers_of_32_bits_are_refused() -> None:
    image = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(UsageError, match="32-bit integers, whose white is unknown; save it as RGB"):
        read_picture(saved(image, "TIFF"), WHERE)


def test_other_colour_modes_are_refused() -> None:
    with pytest.raises(UsageError, match="colour mode CMYK; save it as RGB"):
        read_picture(saved(Image.new("CMYK", (2, 2)), "TIFF"), WHERE)


def test_an_image_is_turned_upright() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    found = read_picture(saved(Image.fromarray(pixels), exif=exif), WHERE)
    assert torch.equal(found[0], torch.from_numpy(np.rot90(pixels, -1).copy()))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_pixels_are_refused_and_opaque_ones_are_not(mode) -> None:
    image = Image.new("RGBA", (2, 2), (10, 10, 10, 255))
    if mode in ("RGBA", "LA"):
        content = saved(image.convert(mode))
        image.putpixel((0, 0), (10, 10, 10, 0))
        clear = saved(image.convert(mode))
    elif mode == "P":
        content = saved(image.convert("P"))
        clear = saved(image.convert("P"), transparency=image.convert("P").getpixel((0, 0)))
    else:
        plain = image.convert(mode)
        content = saved(plain)
        clear = saved(plain, transparency=10 if mode == "L" else (10, 10, 10))
    assert read_picture(content, WHERE).unique().tolist() == [10]
    with pytest.raises(UsageError, match=r"x\.png has transparent pixels"):
        read_picture(clear, WHERE)


def test_black_and_white_is_read_as_0_and_255() -> None:
    image = Image.fromarray(np.array([[True, False]]))
    assert read_picture(saved(image), WHERE).flatten().tolist() == [255, 0]


def test_other_formats_than_those_named_are_refused() -> None:
    content = saved(Image.new("RGB", (2, 2)), "BMP")
    assert read_picture(content, WHERE).shape == (3, 2, 2)
    with pytest.raises(UsageError, match="is not a readable image: cannot identify") as caught:
        read_picture(content, WHERE, formats=("PNG", "JPEG"))
    assert "0x" not in str(caught.value), "no address of an object"


def test_names_that_number_the_classes() -> None:
    assert numbered(["10", *map(str, range(10))]) == [*map(str, range(11))]
    assert numbered(["new001", "new000"]) == ["new000", "new001"]
    for names in (["1", "2"], ["a0", "b1"], ["0", "00"], ["cat"], ["n01", "n02"]):
        assert numbered(names) is None


def test_images_of_a_class_are_sorted_and_never_in_a_linked_folder(tmp_path) -> None:
    for name in ("b.PNG", "a.png", "inner/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = images_in(tmp_path, (".png",), nested=True)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a.png", "b.PNG", "inner/c.png"]
    with pytest.raises(UsageError, match=r"inner is no \.png file"):
        images_in(tmp_path, (".png",), nested=False)
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"again is no \.png file"):
        images_in(tmp_path, (".png",), nested=True)
