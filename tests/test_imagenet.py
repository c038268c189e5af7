"""Tiny ImageNet and the ImageNet subsets: layouts, counts, order of classes, resizing."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from pathlib import Path

import image_trees
import numpy as np
import pytest
import torch
from image_trees import FORMS, TINY, WOOF, colour, read_colours, save, write_tiny, write_woof
from PIL import Image
from torchvision import transforms
from torchvision.models._meta import _IMAGENET_CATEGORIES

from robustdd_bench.board.admission import png, tensors
from robustdd_bench.cli.doctor import check_data
from robustdd_bench.cli.main import main
from robustdd_bench.drawing.figures import grid_size
from robustdd_bench.errors import UsageError
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.papers.pictures import NAMES
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.imagenet import classes, layouts, loaders
from robustdd_bench.protocol.imagenet.loaders import load_layout
from robustdd_bench.protocol.pictures import read_photo, resized
from robustdd_bench.records.plan import make_plan
from robustdd_bench.registry.builtin import _SUBSETS
from robustdd_bench.runs.operations import SIZES
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.reporter import NullReporter

# --- classes ---------------------------------------------------------------------------------


def test_the_200_classes_of_tiny_imagenet_are_sorted_and_never_change() -> None:
    assert len(classes.TINY) == 200
    assert list(classes.TINY) == sorted(set(classes.TINY))
    text = "\n".join(classes.TINY).encode()
    assert hashlib.sha256(text).hexdigest() == PINNED


PINNED = "add4bf0c8712ef7fb4bca98e3bbaf07101636c5db62cce486fd2af71cc11caf8"
NUMBERS = {
    "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "imagewoof": [193, 182, 258, 162, 155, 167, 159, 273, 207, 229],
    "imagemeow": [281, 282, 283, 284, 285, 291, 292, 290, 289, 287],
    "imagesquawk": [84, 130, 88, 144, 145, 22, 96, 9, 100, 89],
    "imagefruit": [953, 954, 949, 950, 951, 957, 952, 945, 943, 948],
    "imageyellow": [309, 986, 954, 951, 987, 779, 599, 291, 72, 11],
}
"""Cazenavette et al. 2022, in the order of their code."""


def test_subsets_have_the_classes_of_trajectory_matching_in_its_order() -> None:
    assert {name: list(subset.numbers) for name, subset in classes.SUBSETS.items()} == NUMBERS
    assert list(_SUBSETS) == list(NUMBERS)
    assert NAMES["imagewoof"][:3] == ("Australian terrier", "Border terrier", "Samoyed")


def test_numbers_names_and_wordnet_ids_of_classes_fit_one_another() -> None:
    found = {}
    for subset in classes.SUBSETS.values():
        for number, wnid, name in zip(subset.numbers, subset.wnids, subset.names, strict=True):
            assert re.fullmatch(r"n\d{8}", wnid)
            words = _IMAGENET_CATEGORIES[number]
            assert name.removesuffix(" cat") in words or name in words
            found[number] = wnid
    assert len(found) == 57
    by_number = [found[number] for number in sorted(found)]
    assert by_number == sorted(set(by_number)), "the numbers count the sorted ids"


def test_the_real_layouts_want_all_images() -> None:
    tiny = layouts.TINY_LAYOUT
    assert (len(tiny.wnids), tiny.train, tiny.test) == (200, (500, 500), 50)
    for layout in layouts.SUBSET_LAYOUTS.values():
        assert (len(layout.wnids), layout.train, layout.test) == (10, (732, 1300), 50)


# --- Tiny ImageNet ---------------------------------------------------------------------------


A, B = TINY.wnids[:2]


def tiny(root: Path, **options):
    return load_layout(TINY, root, False, 64, None, **options)


@pytest.mark.parametrize("form", FORMS)
def test_tiny_imagenet_is_the_same_in_every_form_that_people_have(form, tmp_path) -> None:
    write_tiny(tmp_path / "a", form)
    data = tiny(tmp_path / "a").check("tiny-imagenet")
    assert (data.num_classes, data.classes) == (4, ())
    assert data.train.images.shape == (12, 3, 64, 64)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for split, where, each in ((data.train, "train", 3), (data.test, "val", 2)):
        wanted = [colour(where, k, i) for k in range(4) for i in range(each)]
        np.testing.assert_allclose(read_colours(split.images), wanted, atol=3)
    write_tiny(tmp_path / "b")
    other = tiny(tmp_path / "b")
    assert data.train.sha256() == other.train.sha256()
    assert data.test.sha256() == other.test.sha256()


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_class_that_re_arranged_test_images_lack_is_named(form, tmp_path) -> None:
    base = write_tiny(tmp_path, form)
    (folder,) = {path.parent for path in (base / "val").rglob(f"*{A}*/**/*.JPEG")}
    shutil.rmtree(folder if folder.name == A else folder.parent)
    with pytest.raises(UsageError, match=f"val has no folder {A}, a class of Tiny ImageNet"):
        tiny(tmp_path)


def test_the_data_root_may_be_the_folder_itself(tmp_path) -> None:
    base = write_tiny(tmp_path)
    assert tiny(base).train.sha256() == tiny(tmp_path).train.sha256()


def test_grey_images_have_three_channels_and_hidden_files_are_left_out(tmp_path) -> None:
    base = write_tiny(tmp_path)
    folder = base / "train" / TINY.wnids[1] / "images"
    Image.new("L", (64, 64), 77).save(folder / f"{TINY.wnids[1]}_0.JPEG")
    shutil.copy(folder / f"{TINY.wnids[1]}_0.JPEG", folder / "._copy.JPEG")
    images = tiny(tmp_path).train.images
    assert len(images) == 12
    assert images[3].unique().tolist() == [77]


def test_only_the_images_that_are_asked_for_are_decoded(tmp_path) -> None:
    base = write_tiny(tmp_path)
    for wnid in TINY.wnids:
        (base / "train" / wnid / "images" / f"{wnid}_2.JPEG").write_bytes(b"no image")
    whole = tiny(tmp_path, train_per_class=2, test_per_class=1)
    assert whole.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(whole.test) == 4
    for count in (0, 4, True):
        with pytest.raises(UsageError, match="train_per_class"):
            tiny(tmp_path, train_per_class=count)
    with pytest.raises(UsageError, match=r"_2\.JPEG is not a readable image"):
        tiny(tmp_path)


def _drop(base, name):
    shutil.rmtree(base / name) if (base / name).is_dir() else (base / name).unlink()


DAMAGE = {
    "nothing there": (lambda b: _drop(b, "."), "it is not under .*; get http.*unpack it there"),
    "no val": (lambda b: _drop(b, "val"), "tiny-imagenet-200 has no folder val; get http"),
    "no train": (lambda b: _drop(b, "train"), "tiny-imagenet-200 has no folder train; get http"),
    "no class": (lambda b: _drop(b, f"train/{B}"), f"train has no folder {B}, a class of Tiny"),
    "few": (
        lambda b: _drop(b, f"train/{B}/images/{B}_1.JPEG"),
        f"train/{B} holds 2 images, and should hold 3; unpack the archive again",
    ),
    "many": (
        lambda b: save(b / f"train/{A}/images/more.JPEG", (1, 2, 3)),
        f"train/{A} holds 4 images, and should hold 3",
    ),
    "another data set": (
        lambda b: (b / "wnids.txt").write_text(f"{A}\nn99999999\n"),
        r"wnids\.txt does not name the 4 classes of Tiny ImageNet",
    ),
    "unlisted": (
        lambda b: save(b / "val/images/val_99.JPEG", (1, 2, 3)),
        r"val_99\.JPEG is not in val_annotations\.txt; unpack",
    ),
    "missing test image": (
        lambda b: _drop(b, "val/images/val_14.JPEG"),
        r"val_14\.JPEG is missing, or listed twice, in val_annotations\.txt, line 8; unpack",
    ),
    "unknown class": (
        lambda b: (b / "val/val_annotations.txt").write_text("val_14.JPEG\tn00000001\n"),
        r"val_annotations\.txt, line 1: needs the name of an image and one of the classes",
    ),
    "no list": (
        lambda b: _drop(b, "val/val_annotations.txt"),
        f"val has no folder {A}, a class of Tiny ImageNet; get http",
    ),
    "no test images": (
        lambda b: _drop(b, "val/images"),
        r"tiny-imagenet-200 cannot be read: .*val/images: No such file",
    ),
    "another class of a test image": (
        lambda b: (b / "val/val_annotations.txt").write_text(
            (b / "val/val_annotations.txt").read_text().replace(B, A)
        ),
        f"val holds 4 images of class {A}, and should hold 2",
    ),
    "damaged": (
        lambda b: (b / f"train/{A}/images/{A}_0.JPEG").write_bytes(b"\xff\xd8\xff no image"),
        r"_0\.JPEG is not a readable image",
    ),
    "wrong size": (
        lambda b: save(b / f"train/{A}/images/{A}_0.JPEG", (1, 2, 3), (65, 64)),
        r"_0\.JPEG is 65x64, and must be 64x64",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_with_tiny_imagenet_is_one_line_that_says_what_to_do(
    damage, tmp_path
) -> None:
    base = write_tiny(tmp_path)
    act, message = DAMAGE[damage]
    act(base)
    with pytest.raises(UsageError, match=message) as caught:
        tiny(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_shipped_loader_refuses_a_part_of_tiny_imagenet(tmp_path) -> None:
    write_tiny(tmp_path)
    with pytest.raises(UsageError, match=r"wnids\.txt does not name the 200 classes"):
        loaders.load_tiny_imagenet(tmp_path, False)
    with pytest.raises(UsageError, match="cannot be downloaded from here: get http"):
        loaders.load_tiny_imagenet(tmp_path, True)


# --- ImageNet subsets ------------------------------------------------------------------------


def woof(root: Path, fit="stretch"):
    return load_layout(WOOF, root, False, 128, fit)


def test_a_subset_is_read_in_the_order_of_its_classes_and_not_of_the_folders(tmp_path) -> None:
    write_woof(tmp_path)
    data = woof(tmp_path).check("imagewoof")
    counts = [2 + k % 2 for k in range(10)]
    assert data.train.images.shape == (25, 3, 128, 128)
    assert torch.bincount(data.train.labels).tolist() == counts
    assert data.test.labels.tolist() == [k for k in range(10) for _ in range(2)]
    wanted = [colour("train", k, i) for k in range(10) for i in range(counts[k])]
    np.testing.assert_allclose(read_colours(data.train.images), wanted, atol=3)
    assert list(WOOF.wnids) != sorted(WOOF.wnids)


def test_imagenet_may_be_the_data_root_itself(tmp_path) -> None:
    base = write_woof(tmp_path)
    assert woof(base).test.sha256() == woof(tmp_path).test.sha256()


def _flatten_val(base: Path) -> None:
    for path in list((base / "val").rglob("*.JPEG")):
        path.rename(base / "val" / path.name)
    for folder in (base / "val").iterdir():
        if folder.is_dir():
            folder.rmdir()


WOOF_DAMAGE = {
    "flat val": (_flatten_val, "val holds the images themselves; move them into a folder for each"),
    "no class": (
        lambda b: _drop(b, f"val/{WOOF.wnids[4]}"),
        f"val has no folder {WOOF.wnids[4]}, a class of ImageWoof; get ILSVRC 2012 from image-net",
    ),
    "another split": (
        lambda b: save(b / "val" / WOOF.wnids[3] / "more.JPEG", (1, 2, 3)),
        f"val holds 3 images of class {WOOF.wnids[3]}, and should hold 2; take ILSVRC 2012 in its",
    ),
    "few": (
        lambda b: _drop(b, f"train/{WOOF.wnids[0]}/{WOOF.wnids[0]}_1.JPEG"),
        "holds 1 images, and should hold 2 to 3",
    ),
    "nothing": (lambda b: _drop(b, "."), "ImageWoof cannot be read: it is not under"),
}


@pytest.mark.parametrize("damage", WOOF_DAMAGE)
def test_what_is_wrong_with_imagenet_is_one_line_that_says_what_to_do(damage, tmp_path) -> None:
    base = write_woof(tmp_path)
    act, message = WOOF_DAMAGE[damage]
    act(base)
    with pytest.raises(UsageError, match=message) as caught:
        woof(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_shipped_subset_refuses_a_part_of_its_classes(name, tmp_path) -> None:
    write_woof(tmp_path)
    load = getattr(loaders, f"load_{name}")
    assert load.__doc__.startswith(classes.SUBSETS[name].title)
    with pytest.raises(UsageError, match=r"and should hold 732 to 1300|has no folder n"):
        load(tmp_path, False)


# --- pixels ----------------------------------------------------------------------------------


def noise(width: int, height: int) -> Image.Image:
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (128, 131), (333, 200), (90, 100)])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_images_are_resized_as_torchvision_resizes_those_of_pillow(fit, size) -> None:
    picture = noise(*size)
    resize = transforms.Resize(128 if fit == "crop" else (128, 128))
    wanted = transforms.CenterCrop(128)(resize(picture))
    assert np.array_equal(np.array(resized(picture, 128, fit)), np.array(wanted))


def test_stretch_keeps_the_whole_image_and_crop_its_middle(tmp_path) -> None:
    pixels = np.zeros((200, 400, 3), dtype=np.uint8)
    pixels[:, :100] = 250
    found = {fit: resized(Image.fromarray(pixels), 128, fit) for fit in ("stretch", "crop")}
    assert np.array(found["stretch"])[:, :30].min() == 250
    assert np.array(found["crop"])[:, 2:].max() == 0


def test_an_image_is_read_as_it_is_stored_whatever_its_exif_says(tmp_path) -> None:
    turned, damaged = Image.Exif(), b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12"
    turned[0x0112] = 6
    for exif in (turned, damaged):
        path = tmp_path / "a.JPEG"
        pixels = np.zeros((64, 64, 3), dtype=np.uint8)
        pixels[:32] = 255
        Image.fromarray(pixels).save(path, exif=exif)
        image = read_photo(path.read_bytes(), path, 64, None)
        assert image.shape == (3, 64, 64)
        assert image[:, :24].min() > 200
        assert image[:, 40:].max() < 50


# --- users -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-imagenet", *NUMBERS])
def test_a_run_without_the_data_ends_with_one_line_before_any_work(name, tmp_path, capsys) -> None:
    track = tmp_path / "t.toml"
    track.write_text(
        f'name = "t"\nversion = 1\nsummary = "s"\ndata = {{ dataset = "{name}", ipc = 1 }}\n'
        'students = { epochs = 1 }\nthreat = { ladder = ["2/255"], headline = "2/255" }\n'
        'attacks = [{ name = "fgsm" }]\n'
    )
    words = ["--data-root", tmp_path, "--out", tmp_path / "runs", "--device", "cpu", "--jobs", "1"]
    code = main(["run", "--method", "random", "--track", *map(str, (track, *words))])
    err = capsys.readouterr().err
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "--data-root" in err
    assert "get " in err


def test_doctor_tells_what_is_there_incomplete_and_missing(tmp_path, monkeypatch) -> None:
    write_tiny(tmp_path)
    write_woof(tmp_path)
    warned = list(check_data(tmp_path))
    assert [check.status for check in warned] == ["warn", "warn", "ok", "ok"]
    assert "wnids.txt does not name" in warned[0].detail
    assert "should hold 732 to 1300" in warned[1].detail
    assert "imagenette" in warned[3].detail
    monkeypatch.setattr("robustdd_bench.cli.doctor.TINY_LAYOUT", TINY)
    monkeypatch.setitem(layouts.SUBSET_LAYOUTS, "imagewoof", WOOF)
    found, missing = check_data(tmp_path)
    assert found.detail == "found: digits (embedded), tiny-imagenet, imagewoof"
    assert "imagewoof" not in missing.detail


@pytest.mark.parametrize("ipc", [1, 10])
@pytest.mark.parametrize("name", ["tiny-imagenet", *NUMBERS])
def test_sets_of_the_shipped_tracks_are_small_enough_to_be_published(name, ipc) -> None:
    shape, count, *_ = SIZES[name]
    pixels = math.prod(shape) * count * ipc
    assert 4 * pixels < tensors.MAX_BYTES
    width, height = grid_size(shape, [ipc] * count)
    assert width * height < png.MAX_PIXELS
    assert 3 * width * height < png.MAX_BYTES, "noise cannot be compressed"


TRACK = """
name = "small"
version = 1
summary = "small images"
data = {{ dataset = "{dataset}", ipc = 1, validation_fraction = 0.4 }}
network = {{ name = "convnet", options = {{ depth = {depth}, width = 4 }} }}
preprocessing = {{ kind = "normalise", mean = [0.485, 0.456, 0.406], std = [0.229, 0.224, 0.225] }}
students = {{ count = 1, epochs = 40 }}
threat = {{ norm = "Linf", ladder = ["2/255"], headline = "2/255" }}
attacks = [{{ name = "fgsm" }}]
"""


@pytest.mark.parametrize(
    ("dataset", "depth", "shape"),
    [("small-tiny", 4, (3, 64, 64)), ("small-woof", 5, (3, 128, 128))],
)
def test_a_run_on_such_images_ends_with_a_record(dataset, depth, shape, tmp_path) -> None:
    registry = collect(get_plugin_manager([("image-trees", image_trees.Plugin())]))
    write_tiny(tmp_path)
    write_woof(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(TRACK.format(dataset=dataset, depth=depth))
    plan = make_plan(registry, method="random", track=str(path), device="cpu", threads=1)
    record = execute(
        plan,
        registry,
        LocalExecutor(),
        out=tmp_path / "runs",
        data_root=tmp_path,
        reporter=NullReporter,
    ).record
    assert (record.status, record.data.shape, record.data.classes) == ("complete", shape, ())
    assert record.data.num_classes == len((TINY if dataset == "small-tiny" else WOOF).wnids)
