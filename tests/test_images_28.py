"""Sets of 28x28 images are judged by the field's ConvNet-3: MNIST, folders, imported sets."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_sets import normalised, write_dc
from PIL import Image

from robustdd_bench.cli.main import main
from robustdd_bench.distillers import DistilledSet

TRACK = """
name = "small-28"
version = 1
summary = "images of 28x28"
data = {{ dataset = "{dataset}", ipc = 2, flip = false }}
network = {{ name = "convnet", options = {{ depth = 3, width = 8 }} }}
preprocessing = {{ kind = "normalise", mean = {mean}, std = {std} }}
students = {{ count = 1, epochs = 30, batch_size = 20 }}
threat = {{ norm = "Linf", ladder = [0.05], headline = 0.05 }}
attacks = [{{ name = "fgsm" }}]
"""
MEAN, STD = (0.1307,), (0.3081,)


def blots(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images of 28x28: class k is a bright bar at row 2k, in faint noise."""
    labels = np.arange(count) % 10
    images = np.random.default_rng(seed).integers(0, 40, (count, 28, 28), dtype=np.uint8)
    for image, k in zip(images, labels, strict=True):
        image[2 * k : 2 * k + 3] = 230
    return images, labels


def write_mnist(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count, seed in (("train", 60, 0), ("t10k", 40, 1)):
        images, labels = blots(count, seed)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">II", 0x801, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())


def write_pictures(root: Path) -> None:
    for part, count, seed in (("train", 60, 0), ("test", 40, 1)):
        for i, (image, k) in enumerate(zip(*blots(count, seed), strict=True)):
            folder = root / part / str(k)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")


def write_track(folder: Path, dataset: str, channels: int) -> Path:
    path = folder / "small-28.toml"
    mean, std = ([value[0]] * channels for value in (MEAN, STD))
    path.write_text(TRACK.format(dataset=dataset, mean=mean, std=std))
    return path


def record(root: Path, capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    places = ["--data-root", str(root), "--out", str(root / "runs")]
    means = ["--device", "cpu", "--threads", "1", "--jobs", "1"]
    code = main([*map(str, words), *places, *means])
    assert code == 0, capsys.readouterr().err
    (found,) = (root / "runs").rglob("record.json")
    return json.loads(found.read_text())


@pytest.mark.parametrize(
    ("dataset", "write", "channels"), [("mnist", write_mnist, 1), ("folder", write_pictures, 3)]
)
def test_a_run_on_images_of_28x28_ends_with_a_record_and_pixels_as_they_are(
    dataset, write, channels, tmp_path, capsys
) -> None:
    write(tmp_path)
    track = write_track(tmp_path, dataset, channels)
    found = record(tmp_path, capsys, "run", "--method", "random", "--track", track)
    assert (found["status"], found["data"]["shape"]) == ("complete", [channels, 28, 28])
    assert found["aggregates"]["clean"]["mean"] > 0.5
    (path,) = (tmp_path / "runs").rglob("distilled.safetensors")
    made = DistilledSet.load(path)
    assert made.images.shape == (20, channels, 28, 28)
    real = torch.from_numpy(blots(60, 0)[0]).float().div(255)
    for image in made.images:
        assert (real == image[0]).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dm", ["iterations=2", "batch_real=4"]),
        (
            "mtt",
            ["experts=1", "start_epochs=1", "match_epochs=1", "student_steps=2", "iterations=2"],
        ),
    ],
)
def test_methods_distil_images_of_28x28(method, settings, tmp_path, capsys) -> None:
    write_mnist(tmp_path)
    track = write_track(tmp_path, "mnist", 1)
    words = [word for setting in settings for word in ("--set", setting)]
    found = record(tmp_path, capsys, "run", "--method", method, "--track", track, *words)
    assert (found["status"], found["data"]["shape"]) == ("complete", [1, 28, 28])


def test_an_imported_set_of_mnist_is_judged(tmp_path, capsys) -> None:
    write_mnist(tmp_path)
    images, labels = blots(20, 2)
    pixels = torch.from_numpy(images).float().div(255).unsqueeze(1)
    order = np.argsort(labels, kind="stable")
    source = write_dc(
        tmp_path / "res_MNIST.pt",
        (normalised(pixels[order], MEAN, STD), torch.from_numpy(labels[order])),
    )
    options = ["--format", "dc", "--space", "normalised", "--statistics", "dc-mnist"]
    track = write_track(tmp_path, "mnist", 1)
    found = record(tmp_path, capsys, "evaluate", source, *options, "--track", track)
    assert (found["status"], found["data"]["shape"]) == ("complete", [1, 28, 28])
    assert found["aggregates"]["clean"]["mean"] > 0.5
