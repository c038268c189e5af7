"""Foreign sets that are damaged, hostile or something else: one line, and nothing is executed."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib

import pytest
import torch
from foreign_sets import (
    Calls,
    digits_like,
    rezipped,
    torch_bytes,
    write_dc,
    write_folder,
    write_mtt,
)

from robustdd_bench.errors import UsageError
from robustdd_bench.imports import tensors
from robustdd_bench.imports.convert import import_set
from robustdd_bench.imports.formats import choose

IMAGES, LABELS = digits_like()
PAIR = [IMAGES, LABELS]


def read(path, name="idc", **options):
    return import_set(path, choose(name, **options))


def refused(path, name="idc", **options):
    """The line with which a file is refused."""
    with pytest.raises(UsageError) as caught:
        read(path, name, **options)
    line = str(caught.value)
    assert caught.value.exit_code == 2
    assert "weights_only=False" not in line
    assert "\n" not in line
    return line


# --- pickles that want to do something ---------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda mark: Calls(os.system, f"touch {mark}"), "posix.system"),
        (lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"), "eval"),
        (lambda mark: Calls(open, str(mark), "w"), "io.open"),
        (lambda mark: Calls(pickle.loads, b"cos\nsystem\n."), "pickle.loads"),
        (lambda mark: Calls(torch.load, str(mark)), "torch.serialization.load"),
    ],
    ids=["system", "eval", "open", "pickle", "torch"],
)
def test_a_pickle_that_would_run_something_is_refused_by_name(call, name, legacy, tmp_path):
    mark = tmp_path / "mark"
    for value in ([call(mark), LABELS], {"data": [PAIR], "accs_all_exps": call(mark)}):
        (tmp_path / "data.pt").write_bytes(torch_bytes(value, legacy=legacy))
        assert f"wants to call {name}, which is refused" in refused(tmp_path / "data.pt")
    assert not mark.exists()


def test_the_same_file_would_run_it_were_it_unpickled(tmp_path):
    """The test above can fail: its files do what they are said to do."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Calls(os.system, f"touch {mark}")))
    assert mark.exists()


def test_an_environment_variable_does_not_open_the_door(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = tmp_path / "mark"
    torch.save([Calls(os.system, f"touch {mark}"), LABELS], tmp_path / "data.pt")
    assert "which is refused" in refused(tmp_path / "data.pt")
    assert not mark.exists()


def test_the_allowance_for_numpy_scalars_ends_with_the_file(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read(write_dc(tmp_path / "res.pt", PAIR), "dc", space="raw")
    (tmp_path / "data.pt").write_bytes(b"")
    refused(tmp_path / "data.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_what_others_allowed_torch_to_load_is_not_allowed_here(tmp_path):
    class Mine:
        pass

    (tmp_path / "data.pt").write_bytes(torch_bytes([Calls(ValueError, "x"), LABELS]))
    with torch.serialization.safe_globals([Mine, ValueError]):
        assert "wants to call ValueError, which is refused" in refused(tmp_path / "data.pt")
        assert Mine in torch.serialization.get_safe_globals()


def test_numpy_arrays_are_not_among_what_is_read(tmp_path):
    torch.save([IMAGES.numpy(), LABELS.numpy()], tmp_path / "data.pt")
    assert "wants to call numpy._core.multiarray._reconstruct" in refused(tmp_path / "data.pt")


# --- damaged files -----------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_a_file_that_ends_too_early_is_refused(share, legacy, tmp_path):
    content = torch_bytes(PAIR, legacy=legacy)
    (tmp_path / "data.pt").write_bytes(content[: int(share * len(content))])
    assert "data.pt is not a readable torch file: " in refused(tmp_path / "data.pt")


@pytest.mark.parametrize(
    "content",
    [b"\x80\x04\x95", b"PK\x03\x04" + bytes(90), b"\x89PNG\r\n\x1a\n", b"\0" * 4096, b"null"],
    ids=["pickle 4", "zip", "png", "zeros", "json"],
)
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "data.pt").write_bytes(content)
    assert "data.pt is not a readable torch file: " in refused(tmp_path / "data.pt")


def test_a_script_module_is_refused(tmp_path):
    archive = rezipped(torch_bytes(PAIR), lambda _, data: data)
    (tmp_path / "data.pt").write_bytes(archive)
    with zipfile.ZipFile(tmp_path / "data.pt", "a") as file:
        file.writestr("archive/constants.pkl", b"\x80\x02).")
    assert "not a readable torch file" in refused(tmp_path / "data.pt")


def test_a_tensor_that_claims_more_than_its_file_has_is_refused(tmp_path):
    images = torch.zeros(1).as_strided((10**6, 1, 28, 28), (0, 0, 0, 0))
    torch.save([images, torch.zeros(10**6, dtype=torch.int64)], tmp_path / "data.pt")
    assert (tmp_path / "data.pt").stat().st_size < 10**7
    assert "is larger than any distilled set" in refused(tmp_path / "data.pt")


def test_files_and_archives_beyond_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_BYTES", 4096)
    zeros = torch_bytes([torch.zeros(20, 1, 28, 28), LABELS])
    packed = rezipped(zeros, lambda _, data: data, compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 4096 < len(zeros)
    (tmp_path / "data.pt").write_bytes(packed)
    assert "data.pt: unpacks to 61.7 KiB, more than" in refused(tmp_path / "data.pt")
    with pytest.raises(UsageError, match=r"is larger than 1 B; no distilled set is"):
        tensors.read_bytes(tmp_path / "data.pt", limit=1)


@pytest.mark.parametrize("name", ["dc", "idc"])
def test_paths_that_are_no_files_are_refused(name, tmp_path):
    options = {"space": "raw"} if name == "dc" else {}
    assert refused(tmp_path / "a.pt", name, **options) == f"{tmp_path / 'a.pt'} does not exist"
    assert refused(tmp_path, name, **options) == f"{tmp_path} is no file"
    os.mkfifo(tmp_path / "pipe.pt")
    assert refused(tmp_path / "pipe.pt", name, **options).endswith("pipe.pt is no file")


# --- other things in the place of images, labels and rates -------------------------------------


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (IMAGES, "found a tensor of shape (20, 1, 8, 8)"),
        ([], "found a list of 0 ()"),
        ({"data": []}, "found a dictionary of data"),
        ({"images": IMAGES, "labels": LABELS}, "found a dictionary of images, labels"),
        ({"data": [[IMAGES, LABELS, LABELS]]}, "found a dictionary of data"),
        ({"data": {"0": PAIR}}, "found a dictionary of data"),
        (5, "found 5"),
    ],
)
def test_another_layout_is_refused_with_what_was_found_and_what_is_wanted(value, line, tmp_path):
    torch.save(value, tmp_path / "res.pt")
    found = refused(tmp_path / "res.pt", "dc", space="raw")
    assert "is not of format dc, which is a dictionary whose 'data' lists pairs" in found
    assert found.endswith(line)


def test_the_layout_of_another_format_is_refused(tmp_path):
    write_dc(tmp_path / "res.pt", PAIR)
    assert "is not of format idc, which is a list of images" in refused(tmp_path / "res.pt")
    line = refused(tmp_path / "res.pt", "datm", space="raw")
    assert "format datm is a folder with images_best.pt, or a file images_*.pt" in line


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (torch.full((20, 1, 8, 8), torch.nan), "the images hold NaN or infinity"),
        (torch.full((20, 1, 8, 8), torch.inf), "the images hold NaN or infinity"),
        (torch.full((20, 1, 8, 8), 1e300, dtype=torch.float64), "the images hold NaN or infinity"),
        (torch.zeros(20, 64), "found float32 of shape (20, 64)"),
        (torch.zeros(0, 1, 8, 8), "found float32 of shape (0, 1, 8, 8)"),
        (torch.zeros(20, 1, 8, 8, dtype=torch.uint8), "found uint8 of shape (20, 1, 8, 8)"),
        (torch.zeros(20, 1, 8, 8).to_sparse(), "expected an ordinary tensor of numbers"),
        (torch.zeros(20, 1, 8, 8, device="meta"), "expected an ordinary tensor of numbers"),
        (torch.zeros(20, 1, 8, 8, dtype=torch.complex64), "expected an ordinary tensor"),
    ],
)
def test_images_that_are_none_are_refused(images, line, tmp_path):
    torch.save([images, LABELS], tmp_path / "data.pt")
    assert line in refused(tmp_path / "data.pt")


@pytest.mark.parametrize(
    ("kind", "labels", "line"),
    [
        ("hard", LABELS[:-1], "19 labels do not go with 20 images"),
        ("hard", torch.zeros(20), "hard labels must be integers of shape (n,), found float32"),
        ("hard", torch.zeros(20, 10), "hard labels must be integers"),
        ("hard", torch.zeros(20, dtype=torch.bool), "hard labels must be integers"),
        ("hard", LABELS - 1, "labels must lie in 0..99999"),
        ("hard", LABELS + 2**62, "labels must lie in 0..99999"),
        ("soft", LABELS, "soft labels must be floats of shape (n, classes), found int64"),
        ("soft", torch.ones(20, 10), "must be a distribution over classes"),
        ("soft", torch.full((20, 10), torch.nan), "the labels hold NaN or infinity"),
        ("logits", LABELS, "logits labels must be floats of shape (n, classes)"),
        ("logits", torch.full((20, 10), torch.inf), "the labels hold NaN or infinity"),
    ],
)
def test_labels_of_another_kind_are_refused(kind, labels, line, tmp_path):
    path = write_mtt(tmp_path, IMAGES, labels)
    assert line in refused(path, "mtt", space="raw", labels=kind, learning_rate="track")


@pytest.mark.parametrize(
    "rate",
    [torch.tensor(-0.1), torch.tensor(torch.nan), torch.tensor([0.1, 0.1]), 0.0, True, "0.1"],
)
def test_a_learning_rate_that_is_none_is_refused(rate, tmp_path):
    path = write_mtt(tmp_path, IMAGES, torch.zeros(20, 10), rate=rate)
    assert "a learning rate must be one positive number" in refused(path, "datm", space="raw")


def test_statistics_of_another_number_of_channels_are_refused(tmp_path):
    path = write_dc(tmp_path / "res.pt", PAIR)
    line = refused(path, "dc", space="normalised", statistics="dc-cifar10")
    assert line == "normalise has 3 channels, the images 1"


def test_labels_that_are_missing_are_named(tmp_path):
    path = write_mtt(tmp_path, IMAGES, LABELS)
    (tmp_path / "labels_best.pt").unlink()
    line = refused(path, "mtt", space="raw", labels="hard", learning_rate="track")
    assert line == f"{tmp_path / 'labels_best.pt'} does not exist"


# --- folders -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "set", IMAGES, LABELS, [str(k) for k in range(10)])


def bomb(width, height):
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"")
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"no image", "is not a readable image"),
        (b"GIF89a" + bytes(40), "is not a readable image"),
        (bomb(8, 8), "is not a readable image"),
        (bomb(9, 8), "is 9x8, the images before it 8x8; nothing is resized"),
        (bomb(60000, 60000), "decompression bomb"),
    ],
    ids=["text", "gif", "truncated", "size", "bomb"],
)
def test_an_image_that_is_none_or_does_not_fit_is_refused(content, line, folder):
    (folder / "3" / "x.png").write_bytes(content)
    assert line in refused(folder, "folder")


def test_colour_among_grey_images_and_transparent_ones_are_refused(folder):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(folder / "3" / "x.png")
    assert "is 8x8 RGB, the images before it 8x8 grey" in refused(folder, "folder")
    Image.new("RGBA", (8, 8)).save(folder / "3" / "x.png")
    assert "x.png has transparent pixels" in refused(folder, "folder")


def test_what_is_no_image_in_a_class_is_refused(folder):
    (folder / "3" / "notes.txt").write_text("x")
    assert "notes.txt is no .jpeg, .jpg, .png file" in refused(folder, "folder")


def test_a_link_that_leads_out_of_the_folder_is_refused(folder, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes((folder / "0" / "class000_id000.png").read_bytes())
    (folder / "3" / "x.png").symlink_to(secret)
    assert "x.png is a link that leads out of set" in refused(folder, "folder")


def test_an_empty_class_and_no_classes_are_refused(folder, tmp_path):
    (folder / "10").mkdir()
    assert refused(folder, "folder").endswith("10 holds no image")
    assert "needs one folder of images a class" in refused(folder / "3", "folder")
    assert "does not exist; format folder is" in refused(tmp_path / "none", "folder")
    assert "is no folder" in refused(folder / "0" / "class000_id000.png", "folder")


def test_more_pixels_than_any_set_has_are_refused(folder, monkeypatch):
    monkeypatch.setattr("robustdd_bench.imports.folder.MAX_BYTES", 8 * 8 * 4 * 19)
    assert "set holds more than 4.8 KiB of pixels" in refused(folder, "folder")
