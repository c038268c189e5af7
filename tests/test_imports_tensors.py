"""Sets as plain tensors and arrays; levels of 0 to 255; images that look like mosaics."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from foreign_sets import Calls, digits_like, normalised, write_folder, write_mtt
from test_imports import IMAGES, LABELS, NORMALISED, read, same

from robustdd_bench.cli.main import main
from robustdd_bench.errors import UsageError
from robustdd_bench.files import write_safetensors
from robustdd_bench.imports.convert import describe
from robustdd_bench.protocol.mosaics import join_mosaics, looks_like_mosaics, seam

HARD = {**NORMALISED, "labels": "hard"}
RAW = {"space": "raw", "labels": "hard"}


@pytest.mark.parametrize(
    "value",
    [
        lambda x, y: {"images": x, "labels": y},
        lambda x, y: {"image_syn": x, "label_syn": y, "epoch": 3},
        lambda x, y: {"x": x, "y": y.unsqueeze(1)},
        lambda x, y: (x, y),
        lambda x, y: [x, y.float()],
    ],
)
def test_dictionaries_lists_and_tuples_become_pixels(value, tmp_path):
    path = tmp_path / "set.pt"
    torch.save(value(normalised(IMAGES), LABELS), path)
    made = read(path, "tensors", **HARD)
    assert same(made)
    assert list(made.provenance["imported"]["files"]) == ["set.pt"]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_archives_of_arrays_become_pixels(suffix, tmp_path):
    path, images = tmp_path / f"set.{suffix}", normalised(IMAGES)
    if suffix == "npz":
        np.savez_compressed(path, images=images.numpy(), labels=LABELS.numpy())
    else:
        write_safetensors(path, {"images": images, "labels": LABELS})
    assert same(read(path, "tensors", **HARD))


@pytest.mark.parametrize("suffix", ["pt", "npy"])
def test_two_files_are_read_from_either_of_their_names(suffix, tmp_path):
    for name, value in (("images", normalised(IMAGES)), ("labels", LABELS)):
        path = tmp_path / f"{name}_9.{suffix}"
        torch.save(value, path) if suffix == "pt" else np.save(path, value.numpy())
    for path in (tmp_path, tmp_path / f"images_9.{suffix}"):
        made = read(path, "tensors", **HARD)
        assert same(made)
        assert set(made.provenance["imported"]["files"]) == {
            f"images_9.{suffix}",
            f"labels_9.{suffix}",
        }


def test_whole_numbers_are_levels_of_0_to_255(tmp_path):
    levels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    torch.save((levels, LABELS), tmp_path / "set.pt")
    assert same(read(tmp_path / "set.pt", "tensors", **RAW), levels / 255)
    with pytest.raises(UsageError, match="whole numbers from 0 to 255 are raw pixels, not norm"):
        read(tmp_path / "set.pt", "tensors", **HARD)


def test_raw_pixels_that_reach_255_are_refused(tmp_path):
    torch.save((IMAGES.clamp(0, 1) * 255, LABELS), tmp_path / "set.pt")
    with pytest.raises(UsageError, match=r"--space raw: pixels reach 25\d.*; divide levels of 0"):
        read(tmp_path / "set.pt", "tensors", **RAW)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (
            {"pictures": IMAGES, "labels": LABELS},
            "holds labels, pictures: none that is a name",
        ),
        ({"images": IMAGES, "x": IMAGES, "y": LABELS}, "several names of images"),
        ({"images": IMAGES}, "none that is a name of labels"),
        ({"images": [1, 2], "labels": LABELS}, "images: expected a tensor, found list"),
        ((IMAGES, LABELS, LABELS), "holds a tuple; format tensors is a dictionary with images"),
        (3, "holds a int; format tensors"),
        (IMAGES, "holds one tensor; its labels are looked for beside it"),
        ({"images": IMAGES, "labels": LABELS[1:]}, "19 labels do not go with 20 images"),
        ({"images": IMAGES, "labels": LABELS + 0.5}, "hard labels must be integers"),
        ({"images": IMAGES[0], "labels": LABELS}, "images must be floats of shape"),
    ],
)
def test_what_is_not_clear_is_refused(value, line, tmp_path):
    torch.save(value, tmp_path / "set.pt")
    with pytest.raises(UsageError, match=line):
        read(tmp_path / "set.pt", "tensors", **RAW)


def test_files_of_another_kind_and_hostile_ones_are_refused(tmp_path):
    (tmp_path / "set.txt").write_text("x")
    with pytest.raises(UsageError, match=r"format tensors is a file \.pt, .*, or a folder"):
        read(tmp_path / "set.txt", "tensors", **RAW)
    with pytest.raises(UsageError, match=r"needs one file images\*\.pt .*, and has none"):
        read(tmp_path, "tensors", **RAW)
    torch.save({"images": Calls(print, "hello")}, tmp_path / "set.pt")
    with pytest.raises(UsageError, match="wants to call"):
        read(tmp_path / "set.pt", "tensors", **RAW)
    buffer = io.BytesIO()
    np.save(buffer, np.array([object()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("images.npy", buffer.getvalue())
    with pytest.raises(UsageError, match="is no readable file of numpy arrays: Object arrays"):
        read(tmp_path / "set.npz", "tensors", **RAW)
    (tmp_path / "set.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UsageError, match="is no readable file of numpy arrays"):
        read(tmp_path / "set.npz", "tensors", **RAW)


# --- mosaics ---------------------------------------------------------------------------------


def photographs(count, size=16):
    """Smooth images, as photographs are: neighbouring pixels differ little."""
    side = size // 4
    noise = torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1)


def test_mosaics_have_seams_and_photographs_have_none():
    mosaics = join_mosaics(photographs(80, 8), 2)
    assert seam(mosaics) > 2
    assert looks_like_mosaics(mosaics)
    assert not looks_like_mosaics(photographs(20))
    assert not looks_like_mosaics(mosaics[:9]), "too few to tell"
    assert seam(torch.zeros(20, 1, 8, 8)) == 0
    assert seam(torch.rand(20, 1, 7, 8)) == 0


@pytest.mark.parametrize("name", ["mtt", "datm", "folder", "tensors"])
def test_a_factor_makes_mosaics_in_every_format_that_can_hold_them(name, tmp_path):
    images = photographs(20)
    options = {"factor": 2, "space": "raw", "labels": "hard", "learning_rate": "track"}
    if name == "folder":
        path = write_folder(tmp_path, images, LABELS, [str(k) for k in range(10)])
        images = images.mul(255).round() / 255
    elif name == "tensors":
        path = tmp_path / "set.pt"
        torch.save((images, LABELS), path)
    else:
        labels = LABELS if name == "mtt" else torch.eye(10)[LABELS] * 30
        options |= {"labels": "hard" if name == "mtt" else "logits"}
        path = write_mtt(tmp_path, images, labels)
    made = read(path, name, **options)
    assert (made.mosaic, made.training_images, len(made)) == (2, 80, 20)
    torch.testing.assert_close(made.images, images, rtol=0, atol=1e-6)


def test_images_that_look_like_mosaics_are_told(tmp_path, capsys):
    torch.save((join_mosaics(photographs(80, 8), 2), LABELS), tmp_path / "set.pt")
    words = ["convert", str(tmp_path / "set.pt"), str(tmp_path / "out.safetensors"), "--force"]
    words += ["--format", "tensors", "--space", "raw", "--labels", "hard"]
    assert main(words) == 0
    assert "warning: the images look like mosaics of 2x2 small ones" in capsys.readouterr().err
    assert main([*words, "--factor", "2"]) == 0
    assert "mosaics" not in capsys.readouterr().err
    images, labels = digits_like(channels=3)
    torch.save((images, labels), tmp_path / "set.pt")
    assert not describe(read(tmp_path / "set.pt", "tensors", **RAW))["looks_like_mosaics"]
