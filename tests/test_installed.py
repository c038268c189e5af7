"""Entry points read from folders: the same as importlib.metadata finds, or left to it."""

from __future__ import annotations

import importlib.metadata
import sys
import zipfile
from pathlib import Path

import pytest

from robustdd_bench.registry import installed

GROUP = "robustdd_test_group"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of distributions before all others."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def distribution(place: Path, stem: str, points: str, metadata: str | None = None) -> Path:
    info = place / stem
    info.mkdir(parents=True)
    name, _, version = stem.rpartition(".")[0].partition("-")
    if metadata is None:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: no header\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    return info


def by_the_library() -> list[installed.EntryPoint]:
    return [
        installed.EntryPoint(point.name, point.value, point.dist.name, point.dist.version)
        for point in importlib.metadata.entry_points(group=GROUP)
        if point.dist is not None
    ]


def facts(points: list[installed.EntryPoint]) -> list[tuple[str, str, str, str]]:
    return sorted((p.name, p.value, p.distribution, p.version) for p in points)


def test_the_harness_and_its_plugins_are_read_without_importlib_metadata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = {point.name for point in importlib.metadata.entry_points(group="robustdd")}
    monkeypatch.setattr(importlib.metadata, "entry_points", None)
    monkeypatch.setattr(importlib.metadata, "version", None)
    monkeypatch.setattr(installed, "_all_entry_points", None)
    assert {point.name for point in installed.entry_points("robustdd")} == expected
    assert installed.version("robustdd-bench") != ""


LAYOUTS = {
    "plain": [("some_thing-1.2.dist-info", f"[{GROUP}]\none = a.b\ntwo = a.b:c.d\n")],
    "none": [("other-1.dist-info", "[console_scripts]\nx = y:z\n")],
    "comments and spaces": [
        (
            "p-1.dist-info",
            f"# x\n\n[other]\nq = r\n[{GROUP}]\n # no\n  one=a.b : c\n[last]\nz = y\n",
        )
    ],
    "twins in other spelling": [
        ("Some.Thing-1.dist-info", f"[{GROUP}]\none = a\n"),
        ("elsewhere/some_thing-2.dist-info", f"[{GROUP}]\none = b\n"),
    ],
    "no version in the name": [("bare.dist-info", f"[{GROUP}]\none = a\n")],
    "extras": [("extra-1.dist-info", f"[{GROUP}]\none = a:b [more]\n")],
    "a name nowhere else": [("-1.dist-info", f"[{GROUP}]\none = a\n")],
    "section with spaces": [("s-1.dist-info", f"[ {GROUP} ]\none = a\n")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_say_what_the_library_says(
    layout: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(sys, "path", [str(place), str(elsewhere), *sys.path[1:]])
    for stem, points in LAYOUTS[layout]:
        metadata = None
        if stem.startswith(("-", "bare")):
            metadata = "Metadata-Version: 2.1\nname: stranger\nVersion: 3\n"
        distribution(place, stem, points, metadata)
    expected = by_the_library()
    if layout == "extras":
        expected = [
            installed.EntryPoint(p.name, "a:b", p.distribution, p.version) for p in expected
        ]
    assert bool(expected) == (layout not in ("none", "section with spaces"))
    assert facts(installed.entry_points(GROUP)) == facts(expected)


def test_a_distribution_in_a_zip_file_is_found(place: Path) -> None:
    with zipfile.ZipFile(place.parent / "bundle.zip", "w") as bundle:
        bundle.writestr(
            "zipped-4.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 4\n"
        )
        bundle.writestr("zipped-4.dist-info/entry_points.txt", f"[{GROUP}]\none = a\n")
    sys.path.insert(0, str(place.parent / "bundle.zip"))
    try:
        assert facts(installed.entry_points(GROUP)) == [("one", "a", "zipped", "4")]
        assert installed.version("zipped") == "4"
        assert installed.version("not-there-at-all") == ""
    finally:
        del sys.path[0]


def test_an_editable_checkout_is_read_without_importlib_metadata(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = distribution(place, "mine-1.egg-info", f"[{GROUP}]\na = some.module\n")
    (info / "METADATA").rename(info / "PKG-INFO")
    expected = by_the_library()
    monkeypatch.setattr(importlib.metadata, "entry_points", None)
    assert facts(installed.entry_points(GROUP)) == facts(expected) != []


def test_an_egg_is_found(place: Path) -> None:
    egg = place / "old-5-py3.11.egg"
    info = egg / "EGG-INFO"
    info.mkdir(parents=True)
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: old\nVersion: 5\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\none = a\n")
    sys.path.insert(0, str(egg))
    try:
        assert facts(installed.entry_points(GROUP)) == [("one", "a", "old", "5")]
    finally:
        del sys.path[0]


def test_other_finders_of_distributions_are_asked(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = distribution(place / "hidden", "far-6.dist-info", f"[{GROUP}]\none = a\n")

    class Finder:
        @staticmethod
        def find_spec(*_: object) -> None:
            return None

        @staticmethod
        def find_distributions(context: object) -> list[importlib.metadata.Distribution]:
            return [importlib.metadata.Distribution.at(info)]

    assert installed.entry_points(GROUP) == []
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert facts(installed.entry_points(GROUP)) == [("one", "a", "far", "6")]


def test_a_point_loads_an_attribute_of_an_attribute(place: Path) -> None:
    (place / "loaded_by_test.py").write_text("class A:\n    class B:\n        pass\n")
    point = installed.EntryPoint("one", "loaded_by_test:A.B", "d", "1")
    assert point.load().__qualname__ == "A.B"
    assert installed.EntryPoint("one", "loaded_by_test", "d", "1").load().__name__ == (
        "loaded_by_test"
    )
    del sys.modules["loaded_by_test"]
