"""External sets: judged by their content, like a method's, and published in their division."""

from __future__ import annotations

import datetime
import shlex
import shutil

import pytest
import torch
from publishing import forged
from small_runs import example, plan_of, run

from robustdd_bench.board.admission.submission import Submission
from robustdd_bench.board.build import build
from robustdd_bench.board.publish import publish
from robustdd_bench.board.validate import validate
from robustdd_bench.board.views.tables import board_tables
from robustdd_bench.cli.main import main
from robustdd_bench.config import build_config
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.files import file_sha256
from robustdd_bench.imports.convert import import_set
from robustdd_bench.imports.external_set import GivenSet, store_imported, store_set
from robustdd_bench.imports.formats import Choices
from robustdd_bench.records.record import write_record

DAY = datetime.timedelta(days=1)


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


def test_a_set_of_a_method_of_ours_is_published_as_the_run_of_the_method(tmp_path) -> None:
    finished = given(example("random").folder / "distilled.safetensors", tmp_path)
    with pytest.raises(UsageError, match="publish the run of the method"):
        publish(finished.folder, tmp_path / "board", submission=SAID)


SAID = Submission(name="ROME, authors' set", licence="MIT", paper="https://arxiv.org/abs/2502.1")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A run of a set in a file of another code."""
    folder = tmp_path_factory.mktemp("imported")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, 1, 8, 8, generator=generator)
    torch.save({"images": images, "labels": torch.arange(20) // 2}, folder / "set.pt")
    choices = Choices(format="tensors", space="raw", labels="hard", rate="track")
    found = import_set(folder / "set.pt", choices)
    digest = store_imported(found, folder / "store")
    return run(plan_of("given", f'sha256="{digest}"'), folder)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (None, "a set made elsewhere needs --name, --paper or --link, --licence"),
        (Submission(name="x", licence="MIT"), "a set made elsewhere needs --paper or --link"),
        (Submission(name="x", link="https://a.org"), "a set made elsewhere needs --licence"),
    ],
)
def test_whoever_publishes_a_set_made_elsewhere_says_what_it_is(
    said, line, imported, tmp_path
) -> None:
    with pytest.raises(UsageError, match=rf"cannot be published: {line}$"):
        publish(imported.folder, tmp_path, submission=said)
    assert not list(tmp_path.rglob("record.json"))


def test_a_set_made_elsewhere_has_a_row_in_a_division_of_its_own(imported, tmp_path) -> None:
    published = publish(imported.folder, tmp_path, submission=SAID)
    publish(example("random").folder, tmp_path)
    (track,) = build(tmp_path).tracks
    names = {row.method: row for row in track.rows}
    row = names["ROME, authors' set"]
    assert (row.division, names["random"].division) == ("hard, imported", "hard")
    assert row.rank == 1
    assert "imported" in row.marks
    assert not validate(tmp_path).problems
    shown = [text for table in board_tables(track).values() for text in table.texts()]
    assert any("ROME, authors' set" in cells for cells in shown)
    # Its file makes the same run again.
    words = shlex.split(row.command)
    assert words[:2] == ["robustdd", "evaluate"]
    digest = store_set(tmp_path / words[2], tmp_path / "store")
    assert imported.record.method.config == {"sha256": digest}
    (published.folder / "submission.json").unlink()
    problems = [one.problem for one in validate(tmp_path).problems]
    assert any("a set made elsewhere needs --name" in problem for problem in problems)


def test_a_set_made_elsewhere_that_is_judged_again_needs_no_second_statement(
    imported, tmp_path
) -> None:
    publish(imported.folder, tmp_path / "board", submission=SAID)
    costs = imported.record.costs
    moved = {name: getattr(costs, name) + DAY for name in ("started", "finished")}
    record = forged(imported.record, torch="9.9.9", costs=costs.model_copy(update=moved))
    shutil.copytree(imported.folder, tmp_path / "again")
    write_record(tmp_path / "again" / "record.json", record)
    again = publish(tmp_path / "again", tmp_path / "board")
    assert again.folder.parent.name == "confirmations"
    (track,) = build(tmp_path / "board").tracks
    assert [row.method for row in track.rows] == ["ROME, authors' set"]
    assert not validate(tmp_path / "board").problems


def test_a_method_keeps_its_own_name(tmp_path) -> None:
    with pytest.raises(UsageError, match="--name is for sets made elsewhere; this row is random"):
        publish(example("random").folder, tmp_path, submission=Submission(name="best"))


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


def test_a_file_of_another_code_asks_for_its_format(tmp_path, capsys) -> None:
    torch.save({"images": torch.rand(20, 1, 8, 8)}, tmp_path / "set.pt")
    words = ["evaluate", str(tmp_path / "set.pt"), "--track", "digits-ipc1", "--out"]
    assert main([*words, str(tmp_path / "runs")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "where another code wrote it, name its layout with --format (" in line
    assert "tensors" in line
