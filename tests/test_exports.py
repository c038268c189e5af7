"""`robustdd export`: what is written can be imported again, and the card says what it is."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from small_runs import example, registry

from robustdd_bench.citations import parse_bibtex
from robustdd_bench.cli.main import main
from robustdd_bench.cli.sets import LAYOUTS as NAMES
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.exports.layouts import LAYOUTS
from robustdd_bench.exports.write import export
from robustdd_bench.imports.convert import import_set
from robustdd_bench.imports.formats import choose

STATISTICS = "dc-cifar10"
READ = {
    "dc": ("dc", "res.pt", {}),
    "mtt": ("mtt", "", {"labels": "hard", "learning_rate": "0.03"}),
    "tensors": ("tensors", "set.pt", {"labels": "hard"}),
    "npz": ("tensors", "set.npz", {"labels": "hard"}),
    "imagefolder": ("folder", "images", {}),
}
"""Of each layout that a foreign format is: the format, its file, options. test_hub.py has hub."""


def made(channels=3, **fields):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((20, channels, 8, 8), generator=generator) * 1.2 - 0.1
    labels = torch.arange(10).repeat_interleave(2)
    return replace(DistilledSet(images=images, labels=labels, learning_rate=0.03), **fields)


def exported(distilled, target, layout, record=None, source=Path("x"), **options):
    return export(distilled, record, source, target, registry(), layout=layout, **options)


def test_the_command_names_every_layout() -> None:
    assert set(NAMES) == set(LAYOUTS) == {*READ, "hub"}


@pytest.mark.parametrize("space", ["raw", "normalised"])
@pytest.mark.parametrize("layout", READ)
def test_what_is_exported_is_imported_again(layout, space, tmp_path) -> None:
    distilled = made()
    options = {"space": space} | ({"statistics": STATISTICS} if space == "normalised" else {})
    if layout == "imagefolder" and space == "normalised":
        with pytest.raises(UsageError, match="imagefolder has pixels"):
            exported(distilled, tmp_path / "out", layout, **options)
        return
    exported(distilled, tmp_path / "out", layout, **options)
    name, file, more = READ[layout]
    if layout != "imagefolder":
        more = more | options
    found = import_set(tmp_path / "out" / file, choose(name, **more))
    if layout == "imagefolder":
        wanted = distilled.images.clamp(0, 1).mul(255).round() / 255
    else:
        wanted = distilled.images
    torch.testing.assert_close(found.images, wanted, rtol=0, atol=1e-6)
    assert torch.equal(found.labels, distilled.labels)


def test_files_are_loaded_as_the_card_says(tmp_path, monkeypatch) -> None:
    for layout in LAYOUTS.values():
        if layout.needs:
            pytest.importorskip(layout.needs)
        exported(made(), tmp_path / layout.name, layout.name, space="raw")
        monkeypatch.chdir(tmp_path / layout.name)
        code = Path("README.md").read_text(encoding="utf-8")
        names: dict = {}
        exec(re.search(r"```python\n(.*?)```", code, re.DOTALL)[1], names)
        if layout.name == "hub":
            assert np.array_equal(names["images"], made().images.numpy())
            assert names["labels"].tolist() == made().labels.tolist()
        elif layout.name == "imagefolder":
            assert isinstance(names["data"], torchvision.datasets.ImageFolder)
            assert names["data"].targets == made().labels.tolist()
        else:
            assert np.asarray(names["images"]).shape == (20, 3, 8, 8)
            assert np.asarray(names["labels"]).tolist() == made().labels.tolist()


def test_soft_labels_go_where_they_can(tmp_path) -> None:
    soft = made(labels=torch.eye(10).repeat_interleave(2, 0) * 0.5 + 0.05)
    for layout in ("dc", "imagefolder"):
        with pytest.raises(
            UsageError, match=f"layout {layout} has no soft labels.*; choose mtt, t"
        ):
            exported(soft, tmp_path / layout, layout, space="raw")
    exported(soft, tmp_path / "npz", "npz")
    assert np.load(tmp_path / "npz" / "set.npz")["labels"].shape == (20, 10)


def test_normalised_images_need_statistics_that_fit(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"nothing says with what .*--statistics \(dc-mnist"):
        exported(made(), tmp_path / "out", "dc")
    with pytest.raises(UsageError, match="dc-mnist is for 1 channels, the set has 3"):
        exported(made(), tmp_path / "out", "dc", statistics="dc-mnist")
    with pytest.raises(UsageError, match="--statistics goes with --space normalised"):
        exported(made(), tmp_path / "out", "npz", statistics=STATISTICS)
    record = example("random").record
    data = record.data.model_copy(update={"dataset": "cifar10"})
    shutil.copytree(example("random").folder, tmp_path / "run")
    exported(
        made(),
        tmp_path / "known",
        "dc",
        record=record.model_copy(update={"data": data}),
        source=tmp_path / "run",
    )
    card = (tmp_path / "known" / "README.md").read_text(encoding="utf-8")
    assert "with mean 0.4914, 0.4822, 0.4465 and std 0.2023, 0.1994, 0.201 (dc-cifar10)" in card


def test_what_a_layout_does_not_hold_is_told_and_measured(tmp_path) -> None:
    distilled = made(augmentation="flip", mosaic=2)
    found = exported(distilled, tmp_path / "out", "imagefolder")
    said = " ".join(found.losses)
    outside = float(((distilled.images < 0) | (distilled.images > 1)).double().mean())
    assert f"{100 * outside:.1f} % of them lay outside" in said
    change = float(
        (distilled.images - distilled.images.clamp(0, 1).mul(255).round() / 255).abs().max()
    )
    assert f"the largest change is {change:.3f}" in said
    assert "learning rate that the set brings, 0.03" in said
    assert "augmentation that the set brings: flip" in said
    assert "mosaics of 2x2" in said
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert all(loss in card for loss in found.losses)


def test_a_run_is_exported_with_its_record_figures_and_citations(tmp_path, capsys) -> None:
    folder = example("mat").folder
    out = tmp_path / "out"
    assert main(["export", str(folder), "--to", str(out), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert sorted(files) == sorted(p.relative_to(out).as_posix() for p in out.rglob("*"))
    text = (out / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\ntask_categories:\n- image-classification\ntags:\n")
    record = example("mat").record
    for part in (record.command_to_repeat, record.run_id, record.distilled.sha256, "| mat |"):
        assert part in text
    keys = {one.key for one in parse_bibtex((out / "citation.bib").read_text(encoding="utf-8"))}
    assert len(keys) >= 3, "the benchmark, the method and the data"
    assert (out / "record.json").read_bytes() == (folder / "record.json").read_bytes()
    again = DistilledSet.load(out / "distilled.safetensors")
    assert again.sha256() == record.distilled.sha256


def test_a_folder_that_is_taken_is_left_alone(tmp_path, capsys) -> None:
    source = example("random").folder / "distilled.safetensors"
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    call = ["export", str(source), "--to", str(out)]
    assert main(call) == 2
    assert "is there already; choose another folder, or add --force" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert main([*call, "--force"]) == 0
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "new")]) == 2
    assert main([*call, "--as", "zip"]) == 2
