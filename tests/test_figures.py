"""The pictures of a run: every class has its row, and files are PNG that can be read."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from small_runs import example

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing import figures
from robustdd_bench.drawing.figures import distilled_grid, grid_size, save_distilled

PADDING = 2


def flat_set(classes, ipc, *, channels=1, side=8, soft=False):
    """Image i of class k is of one colour: (k + i/ipc) / classes."""
    labels = torch.arange(classes).repeat_interleave(ipc)
    shade = (labels + torch.arange(ipc).repeat(classes) / ipc) / classes
    images = shade[:, None, None, None].expand(-1, channels, side, side).clone()
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = shuffled[labels[shuffled].argsort(stable=True)] if ipc == 1 else shuffled
    wanted = torch.nn.functional.one_hot(labels, classes).float() if soft else labels
    return DistilledSet(images=images[shuffled], labels=wanted[shuffled])


def cells_of(grid, rows, columns):
    """The pixel in the middle of each tile."""
    height = (grid.shape[1] - PADDING) // rows
    width = (grid.shape[2] - PADDING) // columns
    return torch.stack(
        [
            torch.stack(
                [
                    grid[0, PADDING + r * height + height // 2, PADDING + c * width + width // 2]
                    for c in range(columns)
                ]
            )
            for r in range(rows)
        ]
    )


@pytest.mark.parametrize("soft", [False, True])
def test_the_grid_has_one_row_a_class(soft) -> None:
    grid = distilled_grid(flat_set(5, 3, soft=soft), 5)
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, 5 * (32 + PADDING) + PADDING, 3 * (32 + PADDING) + PADDING)
    middles = cells_of(grid, 5, 3).double() / 255
    for k in range(5):
        assert bool(((middles[k] >= k / 5 - 0.01) & (middles[k] < (k + 1) / 5)).all())
        assert len(set(middles[k].tolist())) == 3


def test_small_images_are_enlarged_and_large_ones_left() -> None:
    assert distilled_grid(flat_set(2, 1, side=8), 2).shape[1] == 2 * (32 + 2) + 2
    assert distilled_grid(flat_set(2, 1, side=40), 2).shape[1] == 2 * (40 + 2) + 2
    assert distilled_grid(flat_set(2, 1, side=12), 2).shape[1] == 2 * (36 + 2) + 2


def test_a_class_with_many_images_shows_some_and_one_with_few_leaves_white() -> None:
    distilled = flat_set(2, 50)
    assert distilled_grid(distilled, 2).shape[2] == 20 * 34 + 2
    few = DistilledSet(images=torch.zeros(3, 1, 8, 8), labels=torch.tensor([0, 0, 1]))
    middles = cells_of(distilled_grid(few, 3), 3, 2)
    assert middles.tolist() == [[0, 0], [0, 255], [255, 255]]


def test_pixels_outside_the_range_are_clipped_in_the_picture_only() -> None:
    distilled = DistilledSet(
        images=torch.tensor([-3.0, 4.0])[:, None, None, None].expand(2, 1, 8, 8),
        labels=torch.arange(2),
    )
    assert cells_of(distilled_grid(distilled, 2), 2, 1).tolist() == [[0], [255]]
    assert float(distilled.images.max()) == 4.0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels_makes_a_readable_picture(channels, tmp_path) -> None:
    save_distilled(tmp_path / "d.png", flat_set(3, 2, channels=channels), 3)
    with Image.open(tmp_path / "d.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == (2 * 34 + 2, 3 * 34 + 2)


def test_the_curve_is_a_readable_picture_and_the_same_every_time() -> None:
    record = example("full").record
    draw = figures.robustness_png.draw  # not one that was drawn before: see conftest.py
    first, second = (draw(record.aggregates, record.track, "a title") for _ in range(2))
    assert first == second
    with Image.open(io.BytesIO(first)) as picture:
        picture.load()
        assert picture.size == (960, 630)
        assert len(set(picture.convert("L").tobytes())) > 50


def test_the_pictures_of_a_run_are_in_its_folder() -> None:
    folder = example("full").folder
    for name in ("distilled.png", "robustness.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"
            picture.verify()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_grid_is_what_torchvision_makes(channels) -> None:
    from torchvision.utils import make_grid

    images = torch.rand(6, channels, 40, 36, generator=torch.Generator().manual_seed(0))
    made = distilled_grid(DistilledSet(images=images, labels=torch.arange(6) // 2), 3)
    wanted = make_grid(images, nrow=2, padding=2, pad_value=1.0).mul(255).round()
    assert torch.equal(made, wanted.to(torch.uint8))
    assert grid_size((channels, 40, 36), (2, 2, 2)) == (made.shape[2], made.shape[1])
