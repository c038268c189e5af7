"""Distilled images that are copies: of test images refused or marked, of training images told."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from commands import robustdd
from small_runs import TRACK

from robustdd_bench.board.admission.overlaps import DataAtHand, copies_against
from robustdd_bench.board.publish import publish
from robustdd_bench.board.rows import _marks
from robustdd_bench.board.standings import standings
from robustdd_bench.cli import run as run_cli
from robustdd_bench.distillers import DistilledSet, Distiller
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.overlap import CORRELATION, RATIO, Overlap, overlap
from robustdd_bench.executors import LocalExecutor
from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.datasets import load_digits
from robustdd_bench.records.parts import OverlapInfo
from robustdd_bench.records.plan import make_plan
from robustdd_bench.records.record import make_record, read_record, write_record
from robustdd_bench.runs.pipeline import execute
from robustdd_bench.runs.progress.displays import NullReporter

LEADERBOARD = Path(__file__).parents[1] / "leaderboard"
OPTIONS = {"test_fraction": 0.05, "split_seed": 0}  # of tests/data/fast.toml


@pytest.fixture(scope="module")
def digits():
    return load_digits(Path(), False)


@pytest.fixture(scope="module")
def photographs():
    """Smooth random images of 3x32x32 with a little texture, as uint8: train and test."""
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        coarse = torch.rand(count, 3, 5, 5, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)
        texture = torch.rand(count, 3, 32, 32, generator=generator)
        return ((0.9 * smooth + 0.1 * texture) * 255).round().to(torch.uint8)

    return draw(3000), draw(1000)


def _naive(images, others):
    """Largest correlation in float64, over images and mirror images; no shifts."""

    def unit(x):
        x = x.flatten(1).double()
        x = x - x.mean(1, keepdim=True)
        return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)

    both = [(unit(x) @ unit(others).T).abs().amax(1) for x in (images, images.flip(3))]
    return torch.maximum(*both)


def test_the_search_finds_what_a_naive_one_in_float64_finds(digits):
    source = torch.Generator().manual_seed(1)
    images = torch.rand(40, 1, 8, 8, generator=source)
    images = 0.15 * images + 0.85 * torch.cat([digits.train.images[:20], digits.test.images[:20]])
    found = overlap(images, digits.train.images, digits.test.images)
    r_test = _naive(images, digits.test.images)
    r_train = _naive(images, digits.train.images)
    near = (r_test >= CORRELATION) & (1 - r_test <= RATIO * (1 - r_train))
    near_train = (r_train >= CORRELATION) & (1 - r_train <= RATIO * (1 - r_test))
    assert found == Overlap(
        images=40,
        exact_test=0,
        near_test=int(near.sum()),
        exact_train=0,
        near_train=int(near_train.sum()),
        closest_test=pytest.approx(float(r_test.max()), abs=1e-6),
    )
    assert found.near_train > 5
    assert found.near_test > 5


LOSSLESS = {
    "as it is": lambda x: x,
    "rounded to 8 bits": lambda x: (x * 255).round() / 255,
    "by less than a level": lambda x: x + 0.9 / 255,
    "mirrored": lambda x: x.flip(3),
    "inverted": lambda x: 1 - x,
    "pushed out of [0,1]": lambda x: torch.where(x == 0, -3.0, x),
}
DISGUISED = {
    "half the contrast": lambda x: 0.25 + x / 2,
    "brighter": lambda x: x / 2 + 0.5,
    "a photographic negative, faint": lambda x: 0.6 - x / 4,
    "noise": lambda x: x + 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "mirrored, faint": lambda x: x.flip(3) / 3,
}


@pytest.mark.parametrize("disguise", sorted(LOSSLESS))
@pytest.mark.parametrize("kind", ["digits", "photographs"])
def test_copies_are_exact_whatever_keeps_each_pixel(disguise, kind, digits, photographs):
    train, test = _splits(kind, digits, photographs)
    images = LOSSLESS[disguise](_pixels(test)[:30])
    found = overlap(images, train, test)
    assert (found.exact_test, found.near_test, found.exact_train) == (30, 0, 0)
    images = LOSSLESS[disguise](_pixels(train)[:30])
    found = overlap(images, train, test)
    assert (found.exact_test, found.near_test, found.exact_train) == (0, 0, 30)
    assert found.closest_test == 0


@pytest.mark.parametrize("disguise", sorted(DISGUISED))
@pytest.mark.parametrize("kind", ["digits", "photographs"])
def test_copies_in_disguise_are_near(disguise, kind, digits, photographs):
    train, test = _splits(kind, digits, photographs)
    found = overlap(DISGUISED[disguise](_pixels(test)[:30]), train, test)
    assert found.exact_test == 0
    assert found.near_test >= 29
    found = overlap(DISGUISED[disguise](_pixels(train)[:30]), train, test)
    assert (found.exact_test, found.near_test) == (0, 0)
    assert found.near_train >= 29


def test_a_copy_that_is_shifted_is_near_where_images_are_large_enough(photographs):
    train, test = photographs
    for down, right in ((1, 0), (0, -2), (2, 1)):
        moved = _pixels(test)[:20].roll((down, right), (2, 3))
        assert overlap(moved, train, test).near_test == 20


def test_an_image_in_both_splits_is_a_copy_of_the_training_image(digits):
    shared = digits.test.images[:5]
    train = torch.cat([digits.train.images, shared])
    found = overlap(shared, train, digits.test.images)
    assert (found.exact_test, found.near_test, found.exact_train) == (0, 0, 5)


def test_blends_and_noise_and_constant_images_are_no_copies(digits, photographs):
    for train, test in ((digits.train.images, digits.test.images), photographs):
        pixels = _pixels(train)
        means = torch.stack([pixels[k::50][:10].mean(0) for k in range(50)])
        rest = [torch.rand(20, *pixels.shape[1:]), torch.full((2, *pixels.shape[1:]), 0.5)]
        found = overlap(torch.cat([means, *rest]), train, test)
        assert (found.exact_test, found.near_test, found.exact_train) == (0, 0, 0)


def test_large_sets_are_compared_in_blocks_with_the_same_answer(photographs, monkeypatch):
    train, test = photographs
    images = torch.cat([_pixels(test)[:7], _pixels(train)[:7] * 0.5, torch.rand(7, 3, 32, 32)])
    whole = overlap(images, train, test)
    monkeypatch.setattr("robustdd_bench.evaluation.overlap._FLOATS", 3072 * 40)
    assert overlap(images, train, test) == whole
    assert (whole.exact_test, whole.near_train) == (7, 7)


def test_few_images_and_splits_of_one_image_are_compared():
    one = torch.rand(1, 1, 4, 4)
    found = overlap(one, torch.rand(1, 1, 4, 4), one)
    assert found.exact_test == 1


def test_no_published_set_holds_copies_of_test_images(digits):
    paths = sorted(LEADERBOARD.glob("results/digits-*/*/*/distilled.safetensors"))
    assert len(paths) > 70
    for path in paths:
        images = DistilledSet.load(path).images
        found = overlap(images, digits.train.images, digits.test.images)
        assert (found.exact_test, found.near_test) == (0, 0), path
        chosen = path.parts[-3] in ("random", "herding", "k-centre")
        assert (found.exact_train == len(images)) == chosen, path


def _pixels(images):
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _splits(kind, digits, photographs):
    return photographs if kind == "photographs" else (digits.train.images, digits.test.images)


# Runs and boards.


class Thief(Distiller):
    """Reads the test images from the package, which no walk of objects can prevent."""

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        contrast: float = 1.0

    def distill(self, task, reporter):
        test = load_digits(Path(), False, **OPTIONS).test
        chosen = torch.cat(
            [(test.labels == k).nonzero()[: task.ipc, 0] for k in range(task.num_classes)]
        )
        images = 0.5 + self.config.contrast * (test.images[chosen] - 0.5)
        return DistilledSet(images=images, labels=test.labels[chosen])


class Plugin:
    @hookimpl
    def robustdd_register_distillers(self, register):
        register("thief", "test_overlap:Thief", "of the tests")


@pytest.fixture(scope="module")
def registry():
    return collect(get_plugin_manager([("thieves", Plugin())]))


@pytest.fixture(scope="module")
def finished(registry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def run(method, *assignments, **options):
        plan = make_plan(
            registry, method=method, track=str(TRACK), threads=1, device="cpu",
            assignments=assignments, **options,
        )  # fmt: skip
        return execute(
            plan, registry, LocalExecutor(), out=folder, data_root=Path(), reporter=NullReporter
        )

    return run


def test_a_set_of_test_images_is_flagged_and_cannot_be_published(
    finished, registry, tmp_path, capsys
):
    done = finished("thief")
    assert done.record.overlap.exact_test == done.record.overlap.images == 20
    assert not done.record.publishable
    run_cli._say_copies(done.record)
    assert capsys.readouterr().err == (
        "warning: 20 of 20 images are exact copies of test images: this run does not rank and "
        "cannot be published\n"
    )
    with pytest.raises(UsageError, match="20 of 20 images are exact copies of test images"):
        publish(done.folder, tmp_path / "board")


def test_a_record_that_hides_its_copies_is_refused_where_the_data_are_at_hand(
    finished, registry, tmp_path
):
    done = finished("thief")
    fields = {name: getattr(done.record, name) for name in type(done.record).model_fields}
    del fields["results_sha256"]
    silent = make_record(**{**fields, "overlap": None})
    data = DataAtHand(registry, tmp_path)
    assert silent.publishable
    assert data.reasons(silent, done.folder) == copies_against(done.record.overlap)
    liar = done.record.overlap.model_copy(update={"exact_test": 0, "near_test": 3})
    reasons = data.reasons(make_record(**{**fields, "overlap": liar}), done.folder)
    assert reasons[1:] == [
        "overlap.exact_test: the record says 0, it is 20",
        "overlap.near_test: the record says 3, it is 0",
    ]
    assert data.notes == []


def test_near_copies_are_marked_and_selections_are_told(finished, capsys):
    near, chosen = finished("thief", "contrast=0.5").record, finished("random").record
    assert near.publishable
    assert (near.overlap.near_test, near.overlap.exact_test) == (20, 0)
    assert "near test images" in _marks(standings([near])[0])
    assert chosen.overlap.exact_train == chosen.overlap.images
    assert "training images" in _marks(standings([chosen])[0])
    run_cli._say_copies(near)
    run_cli._say_copies(chosen)
    told = capsys.readouterr().err.splitlines()
    assert "near copies of test images" in told[0]
    assert told[1] == "all images of the set are training images"


def test_a_validation_run_is_compared_with_what_it_is_judged_on(finished):
    assert finished("random", validate=True).record.overlap.exact_test == 0


def test_references_are_not_compared(finished):
    assert finished("full").record.overlap is None


def test_data_that_are_not_there_or_are_others_are_a_note(finished, registry, tmp_path):
    done = finished("random")
    data = DataAtHand(registry, tmp_path)
    elsewhere = done.record.track.data.model_copy(update={"dataset": "cifar10", "options": {}})
    other = done.record.track.data.model_copy(update={"options": {}})
    for spec in (elsewhere, other):
        track = done.record.track.model_copy(update={"data": spec})
        assert data.reasons(done.record.model_copy(update={"track": track}), done.folder) == []
    missing, differing = data.notes
    assert "fast@1: sets are not compared with the images" in missing
    assert "are not those of the records" in differing


def test_records_of_before_have_no_such_part_and_keep_their_hash():
    path = next(LEADERBOARD.glob("results/digits-ipc10/dm/*/record.json"))
    record = read_record(path)
    assert record.overlap is None
    assert "overlap" not in record.model_dump(mode="json")


def test_more_copies_than_images_are_no_overlap():
    with pytest.raises(ValueError, match="more than the images"):
        OverlapInfo(
            images=1, exact_test=1, near_test=1, exact_train=0, near_train=0, closest_test=1.0
        )


def test_publish_and_validate_compare_the_set_with_the_data(finished, registry, tmp_path):
    """The record's own word is not needed: here it says nothing of copies."""
    done = finished("thief")
    run = shutil.copytree(done.folder, tmp_path / "run")
    fields = {name: getattr(done.record, name) for name in type(done.record).model_fields}
    del fields["results_sha256"]
    write_record(run / "record.json", make_record(**{**fields, "overlap": None}))
    data = DataAtHand(registry, tmp_path)
    with pytest.raises(UsageError, match="20 of 20 images are exact copies of test images"):
        publish(run, tmp_path / "board", data=data)
    assert robustdd("publish", str(run), "--board", str(tmp_path / "board")).returncode == 2
    publish(run, tmp_path / "board")  # without data to compare with
    result = robustdd("board", "validate", "--board", str(tmp_path / "board"))
    assert result.returncode == 1
    assert "exact copies of test images" in " ".join(result.stdout.split())
