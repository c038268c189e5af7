"""Datasets: shapes, pixels in [0,1], a pinned split, and one line for every broken folder."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image
from torch import Tensor

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol import datasets
from robustdd_bench.protocol.datasets import (
    ImageData,
    Split,
    load_digits,
    load_folder,
    stratified_holdout,
)
from robustdd_bench.protocol.loading import read_data, write_data


def _sha256(index: Tensor) -> str:
    return hashlib.sha256(",".join(map(str, index.tolist())).encode()).hexdigest()


# --- digits ----------------------------------------------------------------------------------


def test_digits_are_1797_grey_images_of_8x8_with_pixels_from_0_to_1() -> None:
    data = load_digits(Path("unused"), False).check("digits")
    assert (len(data.train), len(data.test), data.num_classes) == (1438, 359, 10)
    for split in (data.train, data.test):
        assert split.images.shape[1:] == (1, 8, 8)
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert (float(split.images.min()), float(split.images.max())) == (0.0, 1.0)


def test_the_split_of_digits_never_changes() -> None:
    data = load_digits(Path("unused"), False)
    everything = torch.cat([data.train.labels, data.test.labels])
    assert len(everything) == 1797
    from sklearn.datasets import load_digits as load

    labels = torch.from_numpy(load().target.astype(np.int64))
    kept, held = stratified_holdout(labels, 0.2, 0)
    assert _sha256(kept) == "69a476aea76feed3fe811a2143df5493c7619efc7e6f9c2918380463e727a428"
    assert _sha256(held) == "35cf6ad1b1547ac74d4e478a976b24678b3ce2a2e59657a4373e15e7de6a9ecd"
    assert torch.equal(data.train.labels, labels[kept])
    assert torch.equal(data.test.labels, labels[held])


def test_digits_are_those_of_scikit_learn_which_is_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from robustdd_bench.protocol.datasets import load_digits\n"
        "load_digits(Path('unused'), False)\n"
        "print('sklearn' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    ours = load_digits(Path("unused"), False)
    import sklearn.datasets  # noqa: F401 (before its place is hidden)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    theirs = load_digits(Path("unused"), False)  # by scikit-learn's own function
    for one, two in ((ours.train, theirs.train), (ours.test, theirs.test)):
        assert one.sha256() == two.sha256()


def test_another_split_seed_gives_another_split_of_the_same_size() -> None:
    one = load_digits(Path("unused"), False)
    two = load_digits(Path("unused"), False, split_seed=1)
    assert len(one.test) == len(two.test)
    assert one.test.sha256() != two.test.sha256()


# --- the held-out split ----------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.89])
def test_a_holdout_takes_the_same_share_of_every_class_and_every_example_once(
    fraction: float,
) -> None:
    labels = torch.arange(300) % 3 + 4 * (torch.arange(300) % 2)
    kept, held = stratified_holdout(labels, fraction, 3)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(300))
    assert torch.equal(kept, kept.sort().values)
    for k in labels.unique():
        size = int((labels == k).sum())
        assert int((labels[held] == k).sum()) == max(1, round(fraction * size))


def test_a_holdout_always_leaves_and_takes_one_of_each_class() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    for fraction in (0.001, 0.999):
        kept, held = stratified_holdout(labels, fraction, 0)
        assert sorted(labels[kept].tolist()) == sorted(labels[held].tolist()) == [0, 1]


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="class 7 has 1 image, too few to split"):
        stratified_holdout(torch.tensor([0, 0, 7]), 0.5, 0)


# --- what every dataset must be --------------------------------------------------------------


def _split(n: int = 6, classes: int = 3) -> Split:
    images = torch.linspace(0, 1, n * 4).view(n, 1, 2, 2)
    return Split(images, torch.arange(n) % classes)


def test_bytes_and_floats_are_the_same_pixels() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    split = Split(images, torch.arange(4))
    assert split.pixels().dtype == torch.float32
    assert torch.equal(split.pixels(), images.float() / 255)
    assert torch.equal(Split(split.pixels(), split.labels).pixels(), split.pixels())


def test_the_hash_of_a_split_sees_pixels_labels_type_and_shape() -> None:
    split = _split()
    other = split.images.clone()
    other[5, 0, 1, 1] = 0.5
    hashes = {
        split.sha256(),
        Split(other, split.labels).sha256(),
        Split(split.images, split.labels.flip(0)).sha256(),
        Split(split.images.view(6, 2, 2, 1), split.labels).sha256(),
        Split(split.images.double(), split.labels).sha256(),
    }
    assert len(hashes) == 5
    assert Split(split.images.clone(), split.labels.clone()).sha256() in hashes


S = _split()
NAN = torch.where(S.images > 0.9, torch.nan, S.images)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (Split(S.images[0], S.labels), S, r"train split: \(1, 2, 2\) images with \(6,\) labels"),
        (S, Split(S.images[:0], S.labels[:0]), r"test split: \(0, 1, 2, 2\) images"),
        (Split(S.images, S.labels[:5]), S, r"train split: \(6, 1, 2, 2\) images with \(5,\)"),
        (Split(S.images.double(), S.labels), S, "train split: images must be uint8 or float32"),
        (S, Split(S.images, S.labels.int()), "test split: .* labels int64"),
        (Split(NAN, S.labels), S, "train split: pixels hold NaN or infinity"),
        (Split(S.images * 2, S.labels), S, r"train split: pixels must lie in \[0,1\]"),
        (S, Split(S.images - 0.1, S.labels), r"test split: pixels must lie in \[0,1\]"),
        (Split(S.images, S.labels + 1), S, r"train split: labels must lie in 0\.\.2"),
        (Split(S.images, S.labels - 1), S, r"train split: labels must lie in 0\.\.2"),
        (S, Split(S.images, S.labels.clamp_max(1)), "test split: class 2 has no image"),
        (S, Split(S.images.view(6, 1, 4, 1), S.labels), "train and test images differ in shape"),
    ],
)
def test_data_that_no_stage_could_use_is_refused(train: Split, test: Split, message: str) -> None:
    with pytest.raises(UsageError, match=f"dataset 'mine'.*{message}"):
        ImageData(train, test, 3).check("mine")


def test_good_data_passes_the_check() -> None:
    data = ImageData(S, S, 3)
    assert data.check("mine") is data


# --- torchvision's folders -------------------------------------------------------------------

LOADERS = {
    "CIFAR10": datasets.load_cifar10,
    "CIFAR100": datasets.load_cifar100,
    "MNIST": datasets.load_mnist,
    "FashionMNIST": datasets.load_fashion_mnist,
    "SVHN": datasets.load_svhn,
}
RNG = np.random.default_rng(0)


def _write_mnist(root: Path, name: str, _: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part in ("t10k", "train"):
        images = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
        labels = (np.arange(20) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, 20, 28, 28) + images.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, 20) + labels.tobytes()
        )
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()


def _write_cifar(root: Path, name: str, patch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    classes = 10 if name == "CIFAR10" else 100
    dataset = getattr(torchvision.datasets, name)
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    key = "labels" if classes == 10 else "fine_labels"
    for attribute in ("test_list", "train_list"):
        file = getattr(dataset, attribute)[0][0]
        images = RNG.integers(0, 256, (2 * classes, 3072), dtype=np.uint8)
        labels = [i % classes for i in range(2 * classes)]
        content = pickle.dumps({"data": images, key: labels})
        (folder / file).write_bytes(content)
        patch.setattr(dataset, attribute, [[file, hashlib.md5(content).hexdigest()]])
    meta = pickle.dumps({dataset.meta["key"]: [str(k) for k in range(classes)]})
    (folder / dataset.meta["filename"]).write_bytes(meta)
    patch.setattr(dataset, "meta", {**dataset.meta, "md5": hashlib.md5(meta).hexdigest()})
    return torch.from_numpy(images).view(-1, 3, 32, 32), torch.tensor(labels)


def _write_svhn(root: Path, name: str, patch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    root.mkdir(parents=True)
    parts = {}
    for part in ("test", "train"):
        images = RNG.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
        labels = np.arange(20) % 10
        file = root / f"{part}_32x32.mat"
        # The files of SVHN write the digit 0 as class 10.
        scipy.io.savemat(file, {"X": images, "y": np.where(labels == 0, 10, labels)[:, None]})
        parts[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    patch.setattr(torchvision.datasets.SVHN, "split_list", parts)
    return torch.from_numpy(images).permute(3, 2, 0, 1), torch.from_numpy(labels).long()


WRITERS: dict[str, Callable[[Path, str, pytest.MonkeyPatch], tuple[Tensor, Tensor]]] = {
    "CIFAR10": _write_cifar,
    "CIFAR100": _write_cifar,
    "MNIST": _write_mnist,
    "FashionMNIST": _write_mnist,
    "SVHN": _write_svhn,
}


@pytest.mark.parametrize("name", LOADERS)
def test_torchvisions_layout_is_read_as_bytes_with_channels_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = WRITERS[name](tmp_path / "data", name, monkeypatch)
    data = LOADERS[name](tmp_path / "data", False).check(name)
    assert data.num_classes == (100 if name == "CIFAR100" else 10)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.is_contiguous()
    assert torch.equal(data.train.images, images)
    assert torch.equal(data.train.labels, labels)
    assert not torch.equal(data.test.images, images)


@pytest.mark.parametrize("name", LOADERS)
def test_the_first_images_of_each_class_can_be_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = WRITERS[name](tmp_path / "data", name, monkeypatch)
    whole = LOADERS[name](tmp_path / "data", False)
    data = LOADERS[name](tmp_path / "data", False, train_per_class=1).check(name)
    firsts = sorted({int(k): i for i, k in reversed(list(enumerate(labels)))}.values())
    assert torch.equal(data.train.images, images[firsts])
    assert torch.equal(data.train.labels, labels[firsts])
    assert torch.equal(data.test.images, whole.test.images)
    most = int(torch.bincount(whole.test.labels).min())
    few = LOADERS[name](tmp_path / "data", False, test_per_class=most)
    assert torch.bincount(few.test.labels).tolist() == [most] * data.num_classes
    assert torch.equal(few.train.images, images)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "train_per_class must be a positive whole number, not 0"),
        (-3, "train_per_class must be a positive whole number, not -3"),
        (1.5, "train_per_class must be a positive whole number, not 1.5"),
        (True, "train_per_class must be a positive whole number, not True"),
        ("ten", "train_per_class must be a positive whole number, not 'ten'"),
        (10**6, "train_per_class is 1000000, and a class has 2 images"),
    ],
)
def test_a_wrong_number_of_images_of_each_class_is_told(
    value: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS["CIFAR10"](tmp_path / "data", "CIFAR10", monkeypatch)
    with pytest.raises(UsageError, match=re.escape(said)):
        datasets.load_cifar10(tmp_path / "data", False, train_per_class=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_folder_is_one_line_that_says_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        LOADERS[name](tmp_path / "nowhere", False)
    text = str(caught.value)
    assert "\n" not in text
    for word in (name, str(tmp_path / "nowhere"), "--data-root", "--download"):
        assert word in text
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("damage", [b"", b"garbage that is no image file", None])
@pytest.mark.parametrize("name", LOADERS)
def test_a_corrupt_file_is_one_line(
    name: str, damage: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path / "data", name, monkeypatch)
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    train = next(p for p in sorted(files) if p.name.startswith(("train", "data_batch")))
    train.write_bytes(train.read_bytes()[: train.stat().st_size // 2] if damage is None else damage)
    with pytest.raises(UsageError, match=f"{name} is not to be had from") as caught:
        LOADERS[name](tmp_path / "data", False)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    "ROBUSTDD_CIFAR10_ROOT" not in os.environ,
    reason="ROBUSTDD_CIFAR10_ROOT names no folder with the real CIFAR-10",
)
def test_the_real_cifar10_has_50000_and_10000_images_of_ten_balanced_classes() -> None:
    data = datasets.load_cifar10(Path(os.environ["ROBUSTDD_CIFAR10_ROOT"]), False).check("cifar10")
    assert data.train.images.shape == (50_000, 3, 32, 32)
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    mean = data.train.images.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)


# --- folders of images -----------------------------------------------------------------------


def _write_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for part in ("train", "test"):
        for k, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(2):
                pixels = np.full((6, 4, 3), (60 * k, 10 * i, 200), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")


def test_a_folder_of_images_is_one_class_a_folder_in_the_order_of_their_names(
    tmp_path: Path,
) -> None:
    _write_folder(tmp_path)
    data = load_folder(tmp_path, False).check("folder")
    assert data.num_classes == 2
    assert data.train.images.shape == (4, 3, 6, 4)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.train.images[:, :, 0, 0].tolist() == [
        [0, 0, 200],
        [0, 10, 200],
        [60, 0, 200],
        [60, 10, 200],
    ]


def test_grey_opaque_and_palette_images_become_three_channels(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    for i, mode in enumerate(("L", "RGBA", "LA", "P", "1")):
        opaque = {"RGBA": (1, 2, 3, 255), "LA": (1, 255)}.get(mode, 1)
        Image.new(mode, (4, 6), opaque).save(tmp_path / "train" / "cat" / f"m{i}.png")
    assert load_folder(tmp_path, False).check("folder").train.images.shape == (9, 3, 6, 4)


def test_folders_that_number_the_classes_are_in_that_order(tmp_path: Path) -> None:
    """10 once stood before 2, so that a set in the other order was mislabelled (FAULTS C1)."""
    _write_folder(tmp_path, tuple(map(str, range(12))))
    data = load_folder(tmp_path, False).check("folder")
    assert data.classes == tuple(map(str, range(12)))
    assert data.train.labels[::2].tolist() == list(range(12))
    assert (data.train.images[::2, 0, 0, 0] == torch.arange(12).mul(60).to(torch.uint8)).all()
    assert read_data_again(data, tmp_path / "data.safetensors").classes == data.classes


def read_data_again(data, path):
    write_data(path, data)
    return read_data(path)


def test_names_that_do_not_number_the_classes_are_sorted(tmp_path: Path) -> None:
    _write_folder(tmp_path, ("2", "10", "cat"))
    assert load_folder(tmp_path, False).classes == ("10", "2", "cat")


def test_a_class_whose_name_is_no_text_is_refused_before_anything_runs(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    for part in ("train", "test"):
        os.rename(tmp_path / part / "cat", os.fsencode(tmp_path / part) + b"/c\xff")
    with pytest.raises(UsageError, match=r"the folder 'c\\udcff' has a name that is no text"):
        load_folder(tmp_path, False)


def test_hidden_files_and_folders_are_left_out_and_foreign_ones_refused(tmp_path: Path) -> None:
    """FAULTS C3: copies of notebooks became a class of their own."""
    _write_folder(tmp_path)
    for place in ("train", "test", "train/cat"):
        (tmp_path / place / ".ipynb_checkpoints").mkdir()
        shutil.copy(tmp_path / "train/cat/0.png", tmp_path / place / ".ipynb_checkpoints")
        (tmp_path / place / "Thumbs.db").write_bytes(b"x")
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "train/cat/._0.png")
    data = load_folder(tmp_path, False)
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 4, 4)
    (tmp_path / "train/cat/labels.txt").write_text("no")
    with pytest.raises(UsageError, match=r"labels\.txt is no \.bmp, .* file; the folder"):
        load_folder(tmp_path, False)


def test_images_may_lie_in_folders_of_a_class(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    (tmp_path / "train/cat/images").mkdir()
    shutil.move(tmp_path / "train/cat/0.png", tmp_path / "train/cat/images/0.png")
    assert len(load_folder(tmp_path, False).train) == 4


def test_images_of_more_than_eight_bits_make_the_split_floats(tmp_path: Path) -> None:
    """FAULTS C2: they were read as white."""
    _write_folder(tmp_path)
    deep = np.full((6, 4), 32768, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "train/cat/9.png")
    train = load_folder(tmp_path, False).check("folder").train.images
    assert train.dtype == torch.float32
    assert train[2].unique().tolist() == pytest.approx([32768 / 65535])
    assert train[0, 2].unique().tolist() == pytest.approx([200 / 255])


def test_images_of_odd_sizes_are_refused_unless_the_track_resizes_them(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    Image.new("RGB", (5, 7), (255, 255, 255)).save(tmp_path / "train" / "dog" / "z.png")
    with pytest.raises(UsageError, match=r"z\.png is 5x7, the images before it 4x6; set .* size"):
        load_folder(tmp_path, False)
    data = load_folder(tmp_path, False, size=8).check("folder")
    assert data.train.images.shape == (5, 3, 8, 8)
    assert int(data.train.images[-1].min()) == 255


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_that_is_not_positive_is_refused(tmp_path: Path, size: int) -> None:
    _write_folder(tmp_path)
    with pytest.raises(UsageError, match="size must be positive"):
        load_folder(tmp_path, False, size=size)


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "flipped"])
def test_an_unreadable_image_is_named_in_one_line(tmp_path: Path, damage: str) -> None:
    _write_folder(tmp_path)
    path = tmp_path / "train" / "cat" / "0.png"
    good = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "garbage": b"not an image",
            "truncated": good[: len(good) // 2],
            "flipped": good[:20] + b"\xff\xff\xff\xff" + good[24:],
        }[damage]
    )
    with pytest.raises(UsageError, match=r"0\.png is not a readable image") as caught:
        load_folder(tmp_path, False)
    assert "\n" not in str(caught.value)


def test_classes_that_differ_between_train_and_test_are_named(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "wolf")
    with pytest.raises(UsageError, match=r"train/ and test/ differ in their classes: dog, wolf"):
        load_folder(tmp_path, False)


def test_a_class_folder_without_images_is_one_line(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part / "empty").mkdir()
    with pytest.raises(UsageError, match=r"train/empty holds no image") as caught:
        load_folder(tmp_path, False)
    assert "\n" not in str(caught.value)


def test_a_split_without_classes_is_one_line(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    with pytest.raises(UsageError, match=r"train needs one folder of images a class, and has none"):
        load_folder(tmp_path, False)


@pytest.mark.parametrize("missing", ["nothing", "test"])
def test_a_folder_without_train_or_test_is_one_line(tmp_path: Path, missing: str) -> None:
    _write_folder(tmp_path / "data")
    root = tmp_path / "nowhere" if missing == "nothing" else tmp_path / "data"
    if missing == "test":
        (root / "test").rename(root / "tset")
    with pytest.raises(UsageError, match="needs one folder of images a class") as caught:
        load_folder(root, False)
    assert "\n" not in str(caught.value)


def test_a_folder_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be downloaded"):
        load_folder(tmp_path, True)
