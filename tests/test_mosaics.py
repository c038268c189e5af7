"""Mosaics: taking them apart, and what a set, its students, its record and a board make of them."""

import dataclasses
import hashlib
import json

import pytest
import torch
import torch.nn.functional as F
from made_up import made_up, put, share
from publishing import forged
from test_students import small_set, spec_of, train

from robustdd_bench.board.build import build
from robustdd_bench.board.views.tables import board_tables
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.evaluation.students import total_steps
from robustdd_bench.files import read_safetensors, write_safetensors
from robustdd_bench.protocol.mosaics import (
    cut_mosaics,
    decode_mosaics,
    join_mosaics,
    repeat_labels,
)
from robustdd_bench.records.set_info import plain_set, set_info


def random_images(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_two_tiles_a_side_come_in_the_order_of_the_published_code():
    top, bottom = [[1.0, 2.0]], [[3.0, 4.0]]
    image = torch.tensor([top + bottom]).view(1, 1, 2, 2)
    made = decode_mosaics(image, 2)
    assert made.shape == (4, 1, 2, 2)
    # top left, bottom left, top right, bottom right
    assert [tile.unique().tolist() for tile in made] == [[1.0], [3.0], [2.0], [4.0]]


def test_tiles_go_down_the_columns_and_all_images_before_the_next_tile():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    tiles = cut_mosaics(torch.cat([image, 10 + image]), 3).flatten().tolist()
    one = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert tiles == [value + shift for value in one for shift in (0, 10)]


def test_enlarging_by_hand():
    row = torch.tensor([0.0, 4.0, 7.0, 7.0]).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    left, right = decode_mosaics(row, 2)[::2][:, 0, 0].tolist()
    # pixel i of the result lies at (i + 1/2) / 2 - 1/2 of the tile: -1/4, 1/4, 3/4, 5/4
    assert left == [0.0, 1.0, 3.0, 4.0]
    assert right == [7.0, 7.0, 7.0, 7.0]


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (6, 3), (8, 4), (6, 6), (4, 1)])
def test_each_tile_is_enlarged_bilinearly_as_torch_does_it(size, factor):
    images = random_images(3, 2, size, 2 * size).requires_grad_()
    rows, columns = size // factor, 2 * size // factor
    expected = torch.cat(
        [
            F.interpolate(
                images[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns],
                size=(size, 2 * size),
                mode="bilinear",
                align_corners=False,
            )
            for j in range(factor)
            for i in range(factor)
        ]
    )
    found = decode_mosaics(images, factor)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = random_images(*found.shape, seed=1)
    (ours,) = torch.autograd.grad((found * weights).sum(), images)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), images)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal(join_mosaics(cut_mosaics(images, factor), factor), images)


@pytest.mark.parametrize("factor", [0, -1, 3, True, 2.0, "2"])
def test_a_number_of_tiles_that_does_not_divide_is_refused(factor):
    with pytest.raises(UsageError, match="mosaic"):
        decode_mosaics(torch.zeros(1, 1, 8, 8), factor)
    with pytest.raises(RunFailedError, match="mosaic"):
        small_set(mosaic=factor).check((1, 8, 8), 3, None)


def test_labels_are_repeated_in_the_order_of_the_images():
    assert repeat_labels(torch.tensor([4, 7]), 2).tolist() == [4, 7] * 4
    soft = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    assert torch.equal(repeat_labels(soft, 2), torch.cat([soft] * 4))


# --- the set ---------------------------------------------------------------------------------


def test_a_set_without_mosaics_has_the_hash_and_the_file_that_it_always_had(tmp_path):
    made = small_set(learning_rate=0.5)
    recipe = {"augmentation": None, "learning_rate": 0.5, "preprocessing": None}
    digest = hashlib.sha256()
    for tensor in (made.images, made.labels):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    digest.update(json.dumps(recipe).encode())
    assert made.sha256() == digest.hexdigest()
    made.save(tmp_path / "set")
    _, metadata = read_safetensors(tmp_path / "set")
    assert metadata["format"] == "robustdd-set-1"
    assert "mosaic" not in metadata
    assert "mosaic" not in set_info(made, 3).model_dump()
    images, labels = made.decoded()
    assert images is made.images
    assert labels is made.labels


def test_a_mosaic_is_another_set_and_comes_back_from_its_file(tmp_path):
    plain, made = small_set(), small_set(mosaic=2)
    assert plain.sha256() != made.sha256() != small_set(mosaic=4).sha256()
    assert (len(made), made.training_images) == (10, 40)
    made.save(tmp_path / "set")
    found = DistilledSet.load(tmp_path / "set")
    assert (found.mosaic, found.sha256()) == (2, made.sha256())
    # Versions that know no mosaics must not take it for a set of whole images.
    assert read_safetensors(tmp_path / "set")[1]["format"] == "robustdd-set-2"
    assert plain_set(made, made.images).sha256() == made.sha256()
    info = set_info(made, 3)
    assert (info.images, info.mosaic, info.training_images) == (10, 2, 40)
    assert len(made.dataset()) == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mosaic": "0"}, "mosaic"),
        ({"mosaic": "true"}, "mosaic"),
        ({"mosaic": '"2"'}, "mosaic"),
        ({"mosaic": "2", "format": "robustdd-set-1"}, "does not go with format"),
        ({"mosaic": "1"}, "does not go with format"),
    ],
)
def test_a_file_that_says_something_else_is_refused(changes, message, tmp_path):
    small_set(mosaic=2).save(tmp_path / "set")
    tensors, metadata = read_safetensors(tmp_path / "set")
    write_safetensors(tmp_path / "set", tensors, metadata | changes)
    with pytest.raises(UsageError, match=message):
        DistilledSet.load(tmp_path / "set")


@pytest.mark.parametrize("soft", [False, True])
def test_students_train_on_the_decoded_images(soft):
    made = small_set(soft=soft, mosaic=2)
    images, labels = made.decoded()
    apart = dataclasses.replace(made, images=images, labels=labels, mosaic=1)
    spec = spec_of(augmentation="color_crop")
    found, expected = train(made, spec), train(apart, spec)
    assert found.sha256() == expected.sha256()
    assert found.steps == total_steps(spec, 40) == 50
    assert found.train_accuracy == expected.train_accuracy
    assert found.sha256() != train(small_set(soft=soft), spec).sha256()


# --- the board -------------------------------------------------------------------------------


def test_a_row_of_mosaics_says_how_many_images_it_trains_on(tmp_path):
    put(made_up("plain", share(60)), tmp_path)
    record = made_up("tiled", share(50))
    stored = record.distilled.images
    overlap = record.overlap and record.overlap.model_copy(update={"images": 4 * stored})
    distilled = record.distilled.model_copy(update={"mosaic": 2})
    put(forged(record, distilled=distilled, overlap=overlap), tmp_path)
    (track,) = build(tmp_path).tracks
    rows = {row.method: row for row in track.rows}
    assert "mosaics" in rows["tiled"].marks
    assert "mosaics" not in rows["plain"].marks
    assert rows["tiled"].training_images == 4 * stored
    assert rows["plain"].training_images is None
    assert rows["tiled"].division == rows["plain"].division
    (table,) = board_tables(track).values()
    assert f"Mosaics: tiled trains on {4 * stored} images from {stored} stored ones." in table.notes


def test_a_record_of_mosaics_compares_the_images_that_students_see():
    record = made_up("tiled", share(50))
    distilled = record.distilled.model_copy(update={"mosaic": 2})
    with pytest.raises(ValueError, match=r"overlap\.images is not the number of images"):
        forged(record, distilled=distilled)
