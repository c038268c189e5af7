"""A distilled set: what it may be, its file and its hash; and what a task gives to a method."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.distillers import DistilledSet, DistillTask
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.files import read_safetensors, write_safetensors
from robustdd_bench.protocol.datasets import Split
from robustdd_bench.protocol.networks import NetworkFactory, convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import Seeds

SHAPE, K, IPC = (1, 2, 2), 3, 2
IMAGES = torch.linspace(-0.5, 1.5, K * IPC * 4).view(K * IPC, *SHAPE)
LABELS = torch.arange(K).repeat_interleave(IPC)
SOFT = torch.full((K * IPC, K), 0.1) + 0.7 * torch.eye(K).repeat_interleave(IPC, 0)


def _set(**changes: Any) -> DistilledSet:
    return DistilledSet(**({"images": IMAGES, "labels": LABELS} | changes))


# --- check -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distilled", "ipc"),
    [
        (_set(), IPC),
        (_set(images=IMAGES * 100), IPC),
        (_set(labels=LABELS.flip(0)), IPC),
        (_set(labels=SOFT), IPC),
        (_set(labels=SOFT[:1].repeat(6, 1)), IPC),
        (_set(images=IMAGES[:5], labels=SOFT[:5]), IPC),
        (_set(images=IMAGES[:4], labels=LABELS[:4]), None),
        (_set(learning_rate=0.01), IPC),
    ],
)
def test_a_set_that_a_track_can_use_passes(distilled: DistilledSet, ipc: int | None) -> None:
    assert distilled.check(SHAPE, K, ipc) is None


NAN = torch.where(IMAGES > 1, torch.nan, IMAGES)


@pytest.mark.parametrize(
    ("changes", "ipc", "message"),
    [
        ({"images": IMAGES.double()}, IPC, "float32 of shape .* not torch.float64"),
        ({"images": IMAGES.view(6, 4)}, IPC, r"not torch.float32 of shape \(6, 4\)"),
        ({"images": IMAGES.view(6, 1, 4, 1)}, IPC, r"shape \(n, \*\(1, 2, 2\)\)"),
        ({"images": torch.tensor(0.0)}, IPC, "float32 of shape"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, IPC, "0 distilled images do not go with 0"),
        ({"labels": LABELS[:5]}, IPC, "6 distilled images do not go with 5 labels"),
        ({"labels": torch.tensor(1)}, IPC, "6 distilled images do not go with"),
        ({"images": NAN}, IPC, "NaN or infinity: the method diverged"),
        ({"images": IMAGES / 0}, IPC, "NaN or infinity: the method diverged"),
        ({"labels": LABELS.int()}, IPC, "hard labels must be int64"),
        ({"labels": LABELS.float()}, IPC, "hard labels must be int64"),
        ({"labels": LABELS.view(6, 1, 1)}, IPC, "hard labels must be int64"),
        ({"labels": LABELS - 1}, IPC, r"labels must lie in 0\.\.2"),
        ({"labels": LABELS + 1}, IPC, r"labels must lie in 0\.\.2"),
        ({"labels": torch.tensor([0, 0, 0, 1, 2, 2])}, IPC, r"2 images of each class.*\[3, 1, 2\]"),
        ({}, 1, r"asks for 1 images of each class, the set has \[2, 2, 2\]"),
        ({"labels": SOFT}, 1, "has 6 images, more than 1 per class"),
        ({"labels": SOFT.double()}, IPC, r"soft labels must be finite float32 of shape \(n, 3\)"),
        ({"labels": SOFT[:, :2]}, IPC, r"soft labels must be finite float32 of shape \(n, 3\)"),
        ({"labels": SOFT / 0}, IPC, "soft labels must be finite"),
        ({"labels": SOFT * 2}, IPC, "must be a distribution over classes"),
        ({"labels": SOFT - torch.tensor([0.2, -0.2, 0.0])}, IPC, "must be a distribution"),
        ({"learning_rate": 0.0}, IPC, "learning rate of the set must be positive and finite"),
        ({"learning_rate": -1.0}, IPC, "learning rate of the set must be positive and finite"),
        ({"learning_rate": float("nan")}, IPC, "must be positive and finite, not nan"),
        ({"learning_rate": float("inf")}, IPC, "must be positive and finite, not inf"),
    ],
)
def test_a_set_that_no_track_can_use_fails_the_run(
    changes: dict[str, Any], ipc: int | None, message: str
) -> None:
    with pytest.raises(RunFailedError, match=message) as caught:
        _set(**changes).check(SHAPE, K, ipc)
    assert "\n" not in str(caught.value)


# --- file ------------------------------------------------------------------------------------

FULL = _set(
    labels=SOFT,
    learning_rate=0.0123456789,
    augmentation="color_crop",
    preprocessing=Preprocessing("normalise", (0.5,), (0.2,)),
    provenance={"method": "m", "steps": [1, 2], "nested": {"a": None}},
)


def _same(one: DistilledSet, two: DistilledSet) -> None:
    for name in ("images", "labels"):
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    for name in ("learning_rate", "augmentation", "preprocessing", "provenance"):
        assert getattr(one, name) == getattr(two, name)


@pytest.mark.parametrize("distilled", [_set(), FULL, _set(preprocessing=Preprocessing("zca"))])
def test_a_saved_set_comes_back_equal(distilled: DistilledSet, tmp_path: Path) -> None:
    distilled.save(tmp_path / "deep" / "set.safetensors")
    read = DistilledSet.load(tmp_path / "deep" / "set.safetensors")
    _same(read, distilled)
    assert read.sha256() == distilled.sha256()
    assert read.soft_labels == distilled.soft_labels
    assert len(read) == 6


def test_one_set_is_always_the_same_file(tmp_path: Path) -> None:
    FULL.save(tmp_path / "a")
    DistilledSet.load(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_shapes_a_student_shapes_the_hash_and_provenance_does_not() -> None:
    nudged = IMAGES.clone()
    nudged[5, 0, 1, 1] += 1e-6
    others = [
        _set(images=nudged),
        _set(images=IMAGES.flip(0)),
        _set(images=IMAGES.view(6, 1, 4, 1)),
        _set(labels=LABELS.flip(0)),
        _set(labels=LABELS.int()),
        _set(labels=SOFT),
        _set(learning_rate=0.01),
        _set(augmentation="none"),
        _set(preprocessing=Preprocessing()),
        _set(preprocessing=Preprocessing("zca")),
        _set(preprocessing=Preprocessing("zca", epsilon=0.2)),
    ]
    assert len({item.sha256() for item in [_set(), *others]}) == len(others) + 1
    assert _set(provenance={"a": 1}).sha256() == _set().sha256()


METADATA = {
    "format": "robustdd-set-1",
    "learning_rate": "null",
    "augmentation": "null",
    "preprocessing": "null",
    "provenance": "{}",
}


def _write(path: Path, tensors: dict[str, Tensor] | None = None, **changes: str | None) -> None:
    metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
    write_safetensors(path, tensors or {"images": IMAGES, "labels": LABELS}, metadata)


def test_a_file_with_this_metadata_is_a_set(tmp_path: Path) -> None:
    _write(tmp_path / "set")
    _same(DistilledSet.load(tmp_path / "set"), _set())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, "is not a distilled set of robustdd-bench"),
        ({"format": "robustdd-set-9"}, "is not a distilled set of robustdd-bench"),
        ({"tensors": {"images": IMAGES}}, "is not a distilled set of robustdd-bench"),
        (
            {"tensors": {"images": IMAGES, "labels": LABELS, "extra": LABELS}},
            "is not a distilled set",
        ),
        ({"learning_rate": None}, "damaged metadata"),
        ({"learning_rate": "0.1x"}, "damaged metadata"),
        ({"learning_rate": '"fast"'}, "damaged metadata"),
        ({"learning_rate": "true"}, "damaged metadata"),
        ({"augmentation": "3"}, "damaged metadata"),
        ({"provenance": "[]"}, "damaged metadata"),
        ({"preprocessing": "7"}, "damaged metadata"),
        ({"preprocessing": '{"kind": "nose"}'}, "damaged metadata"),
        ({"preprocessing": '{"kind": "zca", "epsilon": "x"}'}, "damaged metadata"),
        ({"preprocessing": '{"kind": "none", "code": "x"}'}, "damaged metadata"),
        ({"preprocessing": '{"kind": ["none"]}'}, "damaged metadata"),
    ],
)
def test_a_file_of_a_stranger_is_held_against_the_format(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _write(tmp_path / "set", **changes)
    with pytest.raises(UsageError, match=message) as caught:
        DistilledSet.load(tmp_path / "set")
    assert str(tmp_path / "set") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_or_missing_set_is_one_line(tmp_path: Path) -> None:
    FULL.save(tmp_path / "set")
    content = (tmp_path / "set").read_bytes()
    for size in (0, 5, 100, len(content) - 1):
        (tmp_path / "set").write_bytes(content[:size])
        with pytest.raises(UsageError, match="is not a readable safetensors file"):
            DistilledSet.load(tmp_path / "set")
    with pytest.raises(UsageError, match="no file"):
        DistilledSet.load(tmp_path / "gone")


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "set").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError):
        DistilledSet.load(tmp_path / "set")
    torch.save({"images": IMAGES, "labels": Trap()}, tmp_path / "set.pt")
    with pytest.raises(UsageError):
        DistilledSet.load(tmp_path / "set.pt")
    assert not (tmp_path / "executed").exists()


def test_the_file_is_plain_safetensors_with_json_metadata(tmp_path: Path) -> None:
    FULL.save(tmp_path / "set")
    tensors, metadata = read_safetensors(tmp_path / "set")
    assert set(tensors) == {"images", "labels"}
    assert metadata["format"] == "robustdd-set-1"
    assert json.loads(metadata["learning_rate"]) == FULL.learning_rate


# --- the task --------------------------------------------------------------------------------


def _task(tmp_path: Path, images: Tensor, labels: Tensor) -> DistillTask:
    cpu = torch.device("cpu")
    return DistillTask(
        images=images,
        labels=labels,
        num_classes=K,
        ipc=IPC,
        network=NetworkFactory(
            convnet, {"depth": 1, "width": 2}, (1, 2, 2), K, Preprocessing(), images, cpu
        ),
        preprocessing=Preprocessing(),
        threat=ThreatModel("Linf", 0.1),
        augmentation="none",
        device=cpu,
        seeds=Seeds(0, "t", "m"),
        work_dir=tmp_path,
        store_dir=tmp_path,
        data_sha256=Split(images, labels).sha256(),
    )


TRAIN_LABELS = torch.tensor([2, 0, 1, 0, 2, 1, 0])
TRAIN_BYTES = torch.arange(28, dtype=torch.uint8).view(7, 1, 2, 2)


def test_a_task_gives_pixels_as_floats_whatever_the_data_is(tmp_path: Path) -> None:
    task = _task(tmp_path, TRAIN_BYTES, TRAIN_LABELS)
    index = torch.tensor([5, 1])
    assert torch.equal(task.pixels(), TRAIN_BYTES.float() / 255)
    assert torch.equal(task.pixels(index), TRAIN_BYTES[index].float() / 255)
    floats = _task(tmp_path, TRAIN_BYTES.float() / 255, TRAIN_LABELS)
    assert torch.equal(floats.pixels(index), task.pixels(index))


def test_a_task_lists_the_images_of_each_class_in_order(tmp_path: Path) -> None:
    found = _task(tmp_path, TRAIN_BYTES, TRAIN_LABELS).class_indices()
    assert [index.tolist() for index in found] == [[1, 3, 6], [2, 5], [0, 4]]


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    task = _task(tmp_path, TRAIN_BYTES, TRAIN_LABELS.clamp_max(1))
    with pytest.raises(UsageError, match="no image of class 2"):
        task.class_indices()


def test_real_images_are_drawn_without_repetition_and_ordered_by_class(tmp_path: Path) -> None:
    task = _task(tmp_path, TRAIN_BYTES, TRAIN_LABELS)
    seen = set()
    for seed in range(20):
        images, labels = task.real_images(2, torch.Generator().manual_seed(seed))
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        where = (images[:, 0, 0, 0] * 255 / 4).round().long()
        assert torch.equal(TRAIN_LABELS[where], labels)
        assert len(set(where.tolist())) == 6
        seen.add(tuple(where[:2].tolist()))
    assert len(seen) == 6


def test_more_real_images_than_there_are_is_refused(tmp_path: Path) -> None:
    task = _task(tmp_path, TRAIN_BYTES, TRAIN_LABELS)
    with pytest.raises(UsageError, match="ipc 3 is larger than class 1, which has 2 training"):
        task.real_images(3, torch.Generator())


def test_a_task_and_a_set_cannot_be_changed(tmp_path: Path) -> None:
    task = _task(tmp_path, TRAIN_BYTES, TRAIN_LABELS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.ipc = 5  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.learning_rate = 1.0  # type: ignore[misc]
