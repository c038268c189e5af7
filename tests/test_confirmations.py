"""A run made again confirms the first one: no further seed, no row of its own."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest
from publishing import copied, forged, install_fast, installed, reseeded
from small_runs import example
from test_board import bent, tree

from robustdd_bench.board.admission.submission import Submission
from robustdd_bench.board.build import build, publish_and_build
from robustdd_bench.board.confirmations import deviation, first_of_each, folder_name
from robustdd_bench.board.publish import published
from robustdd_bench.board.pull_requests.check import check_folders
from robustdd_bench.board.ranking import divisions
from robustdd_bench.board.standings import standings
from robustdd_bench.board.validate import validate
from robustdd_bench.board.views.readme import section
from robustdd_bench.board.views.tables import board_tables
from robustdd_bench.cli.main import main
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import pack_bits, unpack_bits
from robustdd_bench.files import write_json
from robustdd_bench.records.plan import MEANS
from robustdd_bench.records.record import Record, aggregate_students, write_record


def later(record: Record, days: int = 1, **changes) -> Record:
    """The record of the same run made again some days later."""
    started = record.costs.started + datetime.timedelta(days=days)
    finished = record.costs.finished + datetime.timedelta(days=days)
    costs = record.costs.model_copy(update={"started": started, "finished": finished})
    return forged(record, costs=costs, **changes)


def better(record: Record, student: int = 0) -> Record:
    """The record with one student that gets three more images right."""
    found = record.students[student]
    bits = unpack_bits(found.clean)
    bits[(~bits).nonzero().flatten()[:3]] = True
    attacks = tuple(
        result.model_copy(update={"broken": result.broken + 3}) for result in found.attacks
    )
    one = found.model_copy(update={"clean": pack_bits(bits), "attacks": attacks})
    students = tuple(one if s.index == student else s for s in record.students)
    return bent(record, students=students, aggregates=aggregate_students(students, record.track))


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "board"
    publish_and_build(example("random").folder, root, installed())
    return root


def again(tmp_path: Path, record: Record) -> Path:
    """The folder of a run with this record, wherever its plan puts it."""
    return copied(tmp_path / f"again-{len(list(tmp_path.iterdir()))}", record)


def rows(root: Path) -> list[dict]:
    (track,) = json.loads((root / "leaderboard.json").read_text())["tracks"]
    return track["rows"]


OTHERS = [
    {"torch": "9.9.9"},
    {"harness": "0.9.0"},
    {"threads": 2},
    {"device": "cuda"},
]


@pytest.mark.parametrize("changes", OTHERS, ids=lambda c: next(iter(c)))
def test_a_run_with_other_means_is_kept_beside_the_run_it_confirms(changes, root, tmp_path) -> None:
    record = example("random").record
    (before,) = rows(root)
    other = better(later(record, **changes))
    done = publish_and_build(again(tmp_path, other), root, installed())
    home = root / "results/fast/random" / record.run_id
    assert done.folder == home / "confirmations" / folder_name(done.folder / "record.json")
    assert sorted(p.name for p in home.parent.iterdir()) == [record.run_id]
    (row,) = rows(root)
    for key in ("rank", "seeds", "clean", "headline", "robust", "id", "command"):
        assert row[key] == before[key]
    assert row["confirmed"]["count"] == 1
    assert row["confirmed"]["largest_at"] == 0
    found = deviation(record, other)
    assert row["confirmed"]["largest_difference"] == found.difference > 0
    (one,) = row["runs"]
    assert one["confirmations"][0]["same_set"]
    assert not one["confirmations"][0]["same_results"]
    page = (root / "index.html").read_text(encoding="utf-8")
    assert (
        f"Confirmed once, largest difference +{100 * found.difference:.1f} points in clean accuracy"
        in page
    )
    assert validate(root, installed()).problems == ()


def test_another_version_of_the_method_confirms_too(root, tmp_path) -> None:
    record = example("random").record
    method = record.method.model_copy(update={"version": "7.0"})
    publish_and_build(again(tmp_path, later(record, method=method)), root, installed())
    (row,) = rows(root)
    assert row["confirmed"]["count"] == 1
    assert row["runs"][0]["confirmations"][0]["version"] == "7.0"


def test_a_run_made_again_on_another_machine_confirms_under_the_same_id(root, tmp_path) -> None:
    """The same plan: other bits, or the same."""
    record = example("random").record
    publish_and_build(again(tmp_path, better(later(record, 1))), root, installed())
    publish_and_build(again(tmp_path, later(record, 2)), root, installed())
    (run,) = published(root)
    assert [one.record.run_id for one in run.every()] == [record.run_id] * 3
    (row,) = rows(root)
    assert row["confirmed"]["count"] == 2
    assert [c["same_results"] for c in row["runs"][0]["confirmations"]] == [False, True]
    content = build(root)
    (table,) = (t for d in content.tracks for t in board_tables(d).values())
    assert f"Made again: random {content.tracks[0].rows[0].confirmed}." in table.notes
    assert f"random {content.tracks[0].rows[0].confirmed}" in section(published(root), root)
    assert "confirmed twice" in (root / "index.html").read_text(encoding="utf-8").lower()


def test_publishing_a_confirmation_again_changes_nothing(root, tmp_path) -> None:
    folder = again(tmp_path, later(example("random").record, torch="9.9.9"))
    first = publish_and_build(folder, root, installed())
    before = tree(root)
    assert publish_and_build(folder, root, installed()).folder == first.folder
    publish_and_build(example("random").folder, root, installed())
    assert tree(root) == before


def test_a_confirmation_of_a_method_takes_no_name_either(root, tmp_path) -> None:
    before = tree(root)
    folder = again(tmp_path, later(example("random").record, torch="9.9.9"))
    with pytest.raises(UsageError, match="--name is for sets made elsewhere; this row is random"):
        publish_and_build(folder, root, installed(), Submission(name="best"))
    assert tree(root) == before
    assert not validate(root).problems


def test_a_run_with_its_confirmations_is_repaired_without_losing_them(root, tmp_path) -> None:
    folder = again(tmp_path, later(example("random").record, torch="9.9.9"))
    done = publish_and_build(folder, root, installed())
    path = done.folder.parents[1] / "distilled.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    publish_and_build(example("random").folder, root, installed())
    (run,) = published(root)
    assert [one.folder for one in run.confirmations] == [done.folder]


def test_a_repeated_seed_is_no_further_sample_wherever_it_lies(tmp_path) -> None:
    """Two runs of one identity side by side, as an older board may have them."""
    record = example("random").record
    other = better(later(record, torch="9.9.9"))
    for one in (record, other):
        copied(tmp_path / "results", one)
    (run,) = published(tmp_path)
    assert run.record == record
    assert [one.record for one in run.confirmations] == [other]
    build(tmp_path)
    (row,) = rows(tmp_path)
    assert row["seeds"] == [0]
    assert row["clean"]["mean"] == record.aggregates.clean.mean
    (standing,) = standings([other, record])
    assert standing.records == (record,)
    assert first_of_each([other, record]) == [record]


@pytest.mark.parametrize("which", [0, 1])
def test_on_an_older_board_publishing_either_of_two_changes_no_run(which, tmp_path) -> None:
    record = example("random").record
    both = [record, better(later(record, torch="9.9.9"))]
    root = tmp_path / "board"
    folders = [copied(root / "results", one) for one in both]
    build(root)
    before = tree(root)
    done = publish_and_build(again(tmp_path, both[which]), root, installed())
    assert done.folder == folders[which]
    assert tree(root) == before
    # A damaged one is repaired where it lies.
    path = folders[which] / "distilled.png"
    kept = path.read_bytes()
    path.write_bytes(b"")
    publish_and_build(again(tmp_path, both[which]), root, installed())
    assert path.read_bytes() == kept
    assert validate(root, installed()).problems == ()


def test_other_settings_are_another_row_and_no_confirmation(root, tmp_path) -> None:
    record = example("random").record
    method = record.method.model_copy(update={"config": {"a": 1}})
    with pytest.raises(UsageError, match="the images of random"):
        publish_and_build(again(tmp_path, later(record, method=method)), root, installed())


def test_what_confirms_nothing_is_named(root, tmp_path) -> None:
    done = publish_and_build(
        again(tmp_path, later(example("random").record, torch="9.9.9")), root, installed()
    )
    moved = done.folder.with_name("0" * 12)
    done.folder.rename(moved)
    with pytest.raises(UsageError, match="its folder must be called"):
        published(root)
    moved.rename(done.folder)
    # Under the run of another seed it confirms nothing.
    record = reseeded(example("random").record, 1)
    students = tuple(s.model_copy(update={"sha256": f"{s.index}" * 64}) for s in record.students)
    write_record(done.folder / "record.json", forged(record, students=students))
    done.folder.rename(done.folder.with_name(folder_name(done.folder / "record.json")))
    with pytest.raises(UsageError, match=r"it does not confirm run .* seed or split differ"):
        published(root)
    assert len(validate(root, installed()).problems) >= 1


def test_an_orphan_is_named(root, tmp_path) -> None:
    done = publish_and_build(
        again(tmp_path, later(example("random").record, torch="9.9.9")), root, installed()
    )
    (done.folder.parents[1] / "record.json").unlink()
    with pytest.raises(UsageError, match="which is damaged"):
        published(root)


# Seeds that a track ranks.


def other_seed(seed: int) -> Record:
    record = reseeded(example("random").record, seed)
    students = tuple(
        s.model_copy(update={"sha256": f"{(s.index + seed) % 10}" * 64}) for s in record.students
    )
    return forged(record, students=students)


def test_seeds_that_the_track_does_not_rank_are_shown_and_not_counted(root, tmp_path) -> None:
    (before,) = rows(root)
    publish_and_build(again(tmp_path, better(other_seed(7))), root, installed())
    (row,) = rows(root)
    assert row["seeds"] == [0]
    assert row["clean"] == before["clean"]
    assert [run["seed"] for run in row["other_runs"]] == [7]
    assert "other seeds" in row["marks"]
    (table,) = (t for d in build(root).tracks for t in board_tables(d).values())
    assert "Seeds that are not ranked and not counted: random 7." in table.notes
    assert "7 (not counted)" in (root / "index.html").read_text(encoding="utf-8")


def test_a_row_of_other_seeds_alone_has_no_rank(tmp_path) -> None:
    root = tmp_path / "board"
    publish_and_build(again(tmp_path, other_seed(3)), root, installed())
    (row,) = rows(root)
    assert (row["rank"], row["seeds"]) == (None, [3])
    assert "seeds not ranked" in row["marks"]
    assert (standings([other_seed(3)])[0].ranked, standings([other_seed(2)])[0].ranked) == (
        False,
        True,
    )


def test_a_track_may_rank_more_seeds() -> None:
    def on(record: Record, seeds: int) -> Record:
        return forged(record, track=record.track.model_copy(update={"ranked_seeds": seeds}))

    (row,) = [r for d in divisions([on(other_seed(3), 5)]) for r in d.rows]
    assert row.rank == 1
    assert on(other_seed(3), 3).track_sha256 == example("random").record.track_sha256
    assert on(other_seed(3), 5).track_sha256 != example("random").record.track_sha256


def test_rows_of_other_seeds_push_nobody_down(tmp_path) -> None:
    names = [example("mtt").record, better(other_seed(9))]
    (division,) = divisions(names)
    assert {row.standing.method: row.rank for row in division.rows} == {"mtt": 1, "random": None}


# Submissions by pull request.


def submitted(root: Path, tmp_path: Path) -> Path:
    (root / ".lock").unlink(missing_ok=True)
    return Path(shutil.copytree(root, tmp_path / "new"))


def test_a_confirmation_can_be_submitted(root, tmp_path) -> None:
    new = submitted(root, tmp_path)
    folder = again(tmp_path, later(example("random").record, torch="9.9.9"))
    done = publish_and_build(folder, new, installed())
    (new / ".lock").unlink()
    report = check_folders(new, root, installed())
    assert report.refused == []
    assert [where for where, _ in report.runs] == [
        f"leaderboard/{done.folder.relative_to(new).as_posix()}"
    ]


def test_a_run_made_again_is_no_submission_of_a_run(root, tmp_path) -> None:
    new = submitted(root, tmp_path)
    record = later(example("random").record, torch="9.9.9")
    copied(new / "results", record)
    report = check_folders(new, root, installed())
    (refusal,) = report.refused
    assert f"it is run {example('random').record.run_id} made again" in refusal.reason


def test_a_confirmation_of_something_else_is_refused(root, tmp_path) -> None:
    new = submitted(root, tmp_path)
    home = new / "results/fast/random" / example("random").record.run_id / "confirmations"
    folder = again(tmp_path, other_seed(1))
    shutil.copytree(folder, home / folder_name(folder / "record.json"))
    shutil.copytree(folder, home / ("0" * 12))
    report = check_folders(new, root, installed())
    reasons = " ".join(refusal.reason for refusal in report.refused)
    assert "it does not confirm run" in reasons
    assert "its folder must be called" in reasons
    write_json(home / "extra.json", {})
    assert any("extra.json" in r.path for r in check_folders(new, root, installed()).refused)


def test_what_a_run_is_made_with_is_named_in_one_place() -> None:
    assert {"version", "device", "threads", "torch", "harness", "compile"} == MEANS


def test_publish_says_what_a_run_confirms(root, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(install_fast(tmp_path / "site"))
    record = example("random").record
    folder = again(tmp_path, better(later(record, torch="9.9.9")))
    assert main(["publish", str(folder), "--board", str(root)]) == 0
    printed = capsys.readouterr()
    assert Path(printed.out.strip()).parent.name == "confirmations"
    assert printed.err.startswith(f"it confirms run {record.run_id}: largest difference +")
