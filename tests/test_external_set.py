"""External sets: judged by their content, like a method's, and never published."""

from __future__ import annotations

import pytest
import torch
from small_runs import example, plan_of, run

from robustdd_bench.board.publish import publish
from robustdd_bench.config import build_config
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.files import file_sha256
from robustdd_bench.imports.external_set import GivenSet, store_set


def given(path, out, **options):
    digest = store_set(path, out / "store")
    return run(plan_of("given", f'sha256="{digest}"', **options), out)


def test_a_set_is_stored_under_the_hash_of_its_file(tmp_path) -> None:
    path = example("random").folder / "distilled.safetensors"
    digest = store_set(path, tmp_path / "store")
    assert digest == file_sha256(path)
    (stored,) = (tmp_path / "store" / "sets").iterdir()
    assert stored.name == f"{digest}.safetensors"
    assert stored.read_bytes() == path.read_bytes()
    stored.write_bytes(b"damaged")
    store_set(path, tmp_path / "store")
    assert stored.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("method", ["random", "mtt"])
def test_a_given_set_is_judged_exactly_like_the_method_that_made_it(method, tmp_path) -> None:
    made = example(method)
    judged = given(made.folder / "distilled.safetensors", tmp_path).record
    assert judged.students == made.record.students
    assert judged.aggregates == made.record.aggregates
    assert judged.distilled == made.record.distilled
    assert judged.run_id != made.record.run_id
    assert judged.method.name == "given"


def test_the_same_content_is_the_same_run_wherever_it_lies(tmp_path) -> None:
    path = tmp_path / "copy.safetensors"
    path.write_bytes((example("random").folder / "distilled.safetensors").read_bytes())
    first = given(example("random").folder / "distilled.safetensors", tmp_path / "runs")
    second = given(path, tmp_path / "runs")
    assert second.reused
    assert second.folder == first.folder


def test_a_given_set_cannot_be_published(tmp_path) -> None:
    finished = given(example("random").folder / "distilled.safetensors", tmp_path)
    with pytest.raises(UsageError, match="an external set has no method; run the method itself"):
        publish(finished.folder, tmp_path / "board")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"images": torch.rand(20, 1, 4, 4)}, "must be float32 of shape"),
        ({"images": torch.rand(20, 3, 8, 8)}, "must be float32 of shape"),
        ({"labels": torch.zeros(20, dtype=torch.int64)}, "asks for 2 images of each class"),
        ({"images": torch.full((20, 1, 8, 8), float("nan"))}, "hold NaN or infinity"),
    ],
)
def test_a_set_that_does_not_fit_the_track_is_a_wrong_call(change, line, tmp_path) -> None:
    fields = {"images": torch.rand(20, 1, 8, 8), "labels": torch.arange(20) // 2} | change
    DistilledSet(**fields).save(tmp_path / "set.safetensors")
    with pytest.raises(UsageError, match=f"the set does not fit the track: .*{line}"):
        given(tmp_path / "set.safetensors", tmp_path)
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize("content", [None, b"", b"no set at all", "folder"])
def test_a_file_that_is_no_set_is_a_wrong_call_and_nothing_is_stored(content, tmp_path) -> None:
    path = tmp_path / "set.safetensors"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"set\.safetensors"):
        store_set(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_set_that_left_the_store_or_was_changed_there_is_a_wrong_call(tmp_path) -> None:
    digest = store_set(example("random").folder / "distilled.safetensors", tmp_path / "store")
    plan = plan_of("given", f'sha256="{digest}"')
    (stored,) = (tmp_path / "store" / "sets").iterdir()
    stored.write_bytes(stored.read_bytes()[:-1] + b"\x00\x01")
    for _ in range(2):
        with pytest.raises(UsageError, match=f"the set {digest[:12]} is not in the store"):
            run(plan, tmp_path)
        stored.unlink(missing_ok=True)


def test_no_set_at_all_is_a_wrong_call(tmp_path) -> None:
    with pytest.raises(UsageError, match="no set was given; use `robustdd evaluate FILE`"):
        run(plan_of("given"), tmp_path)


@pytest.mark.parametrize("digest", ["abc", "g" * 64, "../../" + "a" * 58])
def test_only_a_hash_names_a_set(digest) -> None:
    with pytest.raises(UsageError, match="sha256 must be the hash of a set's file"):
        build_config(GivenSet.Config, {"sha256": digest}, "method 'given'")
