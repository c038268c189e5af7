from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from robustdd_mean.distiller import Mean

from robustdd_bench.config import build_config
from robustdd_bench.conformance import check_distiller
from robustdd_bench.conformance.tasks import CountingReporter, tiny_task
from robustdd_bench.errors import UsageError
from robustdd_bench.plugins import collect, get_plugin_manager


def test_mean_is_installed_and_passes_the_checks_of_the_benchmark() -> None:
    entry = collect(get_plugin_manager()).get("distillers", "mean")
    assert entry.plugin == "mean"
    assert [finding for finding in check_distiller(entry) if not finding.passed] == []


def test_the_images_of_a_class_average_to_the_mean_of_the_class(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, "mean")
    made = Mean(Mean.Config()).distill(task, CountingReporter())
    for k, index in enumerate(task.class_indices()):
        images = made.images[made.labels == k]
        assert len(images) == task.ipc
        torch.testing.assert_close(images.mean(0), task.pixels(index).mean(0))


def test_a_group_of_one_is_a_real_image(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, "mean")
    made = Mean(Mean.Config(group=1)).distill(task, CountingReporter())
    real = task.pixels()
    for image, label in zip(made.images, made.labels, strict=True):
        where = (real == image).flatten(1).all(1)
        assert task.labels[where].tolist() == [int(label)]


def test_a_negative_group_is_refused() -> None:
    with pytest.raises(UsageError, match="method 'mean': group must be at least 0, not -1"):
        build_config(Mean.Config, {"group": -1}, "method 'mean'")


def test_more_groups_than_images_are_refused(tmp_path: Path) -> None:
    task = dataclasses.replace(tiny_task(tmp_path, "mean"), ipc=13)
    with pytest.raises(UsageError, match="ipc 13 is larger than class 0, which has 12"):
        Mean(Mean.Config()).distill(task, CountingReporter())
