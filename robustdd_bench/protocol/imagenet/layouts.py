"""Where the files of Tiny ImageNet and ImageNet lie, and whether all of them are there.

Nothing is decoded here: what is missing is told before any work. Both have a folder for each class,
named by its WordNet id, and each split is found in any of the forms in which people have it:

    train/<wnid>/images/*.JPEG      Tiny ImageNet as it comes
    train/<wnid>/*.JPEG             ImageNet
    val/images/*.JPEG               Tiny ImageNet as it comes, classes in val/val_annotations.txt
    val/<wnid>/images/*.JPEG        re-arranged
    val/<wnid>/*.JPEG               ImageNet, and Tiny ImageNet re-arranged
    val/images/<wnid>/*.JPEG        re-arranged

The images of a class are in the order of their names, so that every form gives the same data.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.imagenet.classes import SUBSETS, TINY
from robustdd_bench.strict import read_bounded

SUFFIXES = (".jpeg", ".jpg")
ANNOTATIONS = "val_annotations.txt"
WNIDS = "wnids.txt"
MAX_LIST = 2**24
"""Bytes of a list of names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderLayout:
    """What must be there of a data set."""

    title: str
    """What messages call it."""
    folders: tuple[str, ...]
    """Below the data root, the folders that may hold train/ and val/; "." is the root itself."""
    wnids: tuple[str, ...]
    """Its classes, in the order of their labels."""
    train: tuple[int, int]
    """Fewest and most training images of a class."""
    test: int
    """Images of a class in val/, which are the test images."""
    source: str
    """Where to get it, and where to put it."""
    whole: bool
    """Whether the classes are all that the folder holds."""


IMAGENET_SOURCE = (
    "get ILSVRC 2012 from image-net.org (you need an account) and lay it out as imagenet/train/"
    "<wnid>/*.JPEG and imagenet/val/<wnid>/*.JPEG, or name its folder with --data-root"
)
TINY_LAYOUT = FolderLayout(
    title="Tiny ImageNet",
    folders=("tiny-imagenet-200", "."),
    wnids=TINY,
    train=(500, 500),
    test=50,
    source=(
        "get http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it there, or name the "
        "folder of tiny-imagenet-200 with --data-root"
    ),
    whole=True,
)
SUBSET_LAYOUTS = {
    name: FolderLayout(
        title=subset.title,
        folders=("imagenet", "."),
        wnids=subset.wnids,
        train=(732, 1300),  # of any class: Russakovsky et al. 2015
        test=50,
        source=IMAGENET_SOURCE,
        whole=False,
    )
    for name, subset in SUBSETS.items()
}


@dataclass(frozen=True, slots=True)
class ClassFiles:
    """The images of a data set: for each class, in the order of labels, its files by name."""

    train: tuple[tuple[Path, ...], ...]
    test: tuple[tuple[Path, ...], ...]


def find_files(layout: FolderLayout, root: Path) -> ClassFiles:
    """The files of a data set, all of them there.

    Args:
        layout: what must be there.
        root: the data root.

    Raises:
        UsageError: the data set, a class or an image is missing, or there is more than there should
            be; one line says which, and what to do.
    """
    base = find_base(layout, root)
    try:
        _check_names(layout, base)
        train = [_class_images(layout, base / "train", wnid) for wnid in layout.wnids]
        test = _test_images(layout, base / "val")
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise UsageError(f"{layout.title}: {base} cannot be read: {what}") from error
    for wnid, files in zip(layout.wnids, train, strict=True):
        _check_count(layout, base / "train" / wnid, len(files), *layout.train)
    for wnid, files in zip(layout.wnids, test, strict=True):
        _check_count(layout, base / "val", len(files), layout.test, layout.test, wnid)
    return ClassFiles(tuple(map(tuple, train)), tuple(map(tuple, test)))


def find_base(layout: FolderLayout, root: Path) -> Path:
    """The folder that holds train/ and val/.

    Raises:
        UsageError: there is none, or it lacks one of the two.
    """
    lacking = None
    for folder in layout.folders:
        base = root / folder
        here = [os.path.isdir(base / part) for part in ("train", "val")]
        known = (os.path.isdir(base / "train" / wnid) for wnid in layout.wnids)
        if all(here) and (folder != "." or any(known)):
            return base
        if any(here) and folder != "." and lacking is None:
            lacking = f"{base} has no folder {'val' if here[0] else 'train'}"
    what = lacking or f"it is not under {root}"
    raise UsageError(f"{layout.title} cannot be read: {what}; {layout.source}")


def _check_names(layout: FolderLayout, base: Path) -> None:
    """Hold the folder's own list of classes against that of the layout, where it has one."""
    path = base / WNIDS
    if not layout.whole or not path.is_file():
        return
    names = read_bounded(path, "a list of classes", MAX_LIST).decode(errors="replace").split()
    odd = sorted(set(names) ^ set(layout.wnids))
    if odd:
        raise UsageError(
            f"{path} does not name the {len(layout.wnids)} classes of {layout.title} ({odd[0]} is "
            "in one of both); this is another data set, or a part of it"
        )


def _class_images(layout: FolderLayout, split: Path, wnid: str) -> list[Path]:
    """The images of a class in a split that has a folder for each."""
    for folder in (split / wnid / "images", split / wnid, split / "images" / wnid):
        if folder.is_dir():
            return _images(folder)
    loose = any(p.suffix.lower() in SUFFIXES for p in split.iterdir())
    what = (
        f"{split} holds the images themselves; move them into a folder for each class"
        if loose
        else f"{split} has no folder {wnid}, a class of {layout.title}"
    )
    raise UsageError(f"{what}; {layout.source}")


def _images(folder: Path) -> list[Path]:
    """The images of a folder by name, without hidden files and lists beside them."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    return sorted((p for p in found if not p.name.startswith(".")), key=lambda p: p.name)


def _test_images(layout: FolderLayout, split: Path) -> list[list[Path]]:
    """The test images by class, in folders or by the list of the annotations."""
    listed = split / ANNOTATIONS
    sorted_out = any(
        (folder / wnid).is_dir() for wnid in layout.wnids for folder in (split, split / "images")
    )
    if sorted_out or not listed.is_file():
        return [_class_images(layout, split, wnid) for wnid in layout.wnids]
    place = {wnid: k for k, wnid in enumerate(layout.wnids)}
    here = {p.name: p for p in _images(split / "images")}
    found: list[list[Path]] = [[] for _ in layout.wnids]
    text = read_bounded(listed, "a list of images", MAX_LIST).decode(errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2 or words[1] not in place:
            raise UsageError(
                f"{listed}, line {number}: needs the name of an image and one of the classes of "
                f"{layout.title}; unpack the archive again"
            )
        if words[0] not in here:
            raise UsageError(
                f"{split / 'images' / words[0]} is missing, or listed twice, in {ANNOTATIONS}, "
                f"line {number}; unpack the archive again"
            )
        found[place[words[1]]].append(here.pop(words[0]))
    if here:
        raise UsageError(f"{min(here.values())} is not in {ANNOTATIONS}; unpack the archive again")
    return [sorted(files, key=lambda p: p.name) for files in found]


def _check_count(
    layout: FolderLayout, where: Path, count: int, fewest: int, most: int, wnid: str = ""
) -> None:
    if fewest <= count <= most:
        return
    wanted = str(most) if fewest == most else f"{fewest} to {most}"
    of = f" of class {wnid}" if wnid else ""
    hint = (
        "unpack the archive again"
        if layout.whole
        else "take ILSVRC 2012 in its own split (fast.ai's imagenette2 and imagewoof2 have another)"
    )
    raise UsageError(
        f"{layout.title}: {where} holds {count} images{of}, and should hold {wanted}; {hint}"
    )


def seems_present(layout: FolderLayout, root: Path) -> bool:
    """Whether somebody put the data set under a data root, complete or not.

    Of a subset all classes have to be there: other subsets share folders with it.
    """
    enough = any if layout.whole else all
    return any(
        enough(os.path.isdir(root / folder / "train" / wnid) for wnid in layout.wnids)
        for folder in layout.folders
    )
