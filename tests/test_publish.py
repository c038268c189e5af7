"""Publishing: protocol, set, preview, people; and a board that is as it was if it fails."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import pytest
from publishing import copied, fit_set, forged, installed, refitted, renamed, reseeded
from small_runs import example, plan_of, run
from test_board import tree

from robustdd_bench.board import build as building
from robustdd_bench.board.admission.submission import Submission, make_submission, read_submission
from robustdd_bench.board.build import publish_and_build
from robustdd_bench.board.publish import locked, placing, publish, published
from robustdd_bench.cli.main import main
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.protocol.tracks import load_track


@pytest.fixture
def board(tmp_path) -> Path:
    root = tmp_path / "board"
    publish_and_build(example("random").folder, root, installed())
    return root


def refused(folder: Path, board: Path) -> str:
    """The line with which a run is refused, and that nothing happened."""
    before = tree(board)
    with pytest.raises(UsageError) as caught:
        publish_and_build(folder, board, installed())
    assert tree(board) == before
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_publishing_builds_the_board_and_again_changes_nothing(board) -> None:
    before = tree(board)
    assert {"leaderboard.json", "index.html"} <= set(before)
    publish_and_build(example("random").folder, board, installed())
    assert tree(board) == before
    content = json.loads((board / "leaderboard.json").read_text())
    assert [row["method"] for row in content["tracks"][0]["rows"]] == ["random"]


def test_a_track_that_is_not_installed_is_named(board) -> None:
    line = refused(copied(board.parent / "runs", on_track(name="slow")), board)
    assert "its track slow is not installed here; install the plugin that registers it" in line
    assert "digits-ipc10" in line


def on_track(**changes):
    record = example("random").record
    return forged(record, track=record.track.model_copy(update=changes))


def test_an_easier_track_under_the_same_name_and_version_is_refused(tmp_path) -> None:
    track = example("random").record.track
    students = track.students.model_copy(update={"epochs": 5})
    folder = copied(tmp_path / "runs", on_track(students=students, summary="easier"))
    line = refused(folder, tmp_path / "board")
    assert "its track is not the protocol that is installed as fast@1" in line
    assert "students, summary differ" in line


@pytest.mark.parametrize(("version", "told"), [(2, "update robustdd-bench"), (0, "")])
def test_another_version_is_published_only_where_it_is_installed(version, told, tmp_path) -> None:
    if not version:  # an old version of an installed track stays on the board
        (tmp_path / "results").mkdir()
        record = on_track(name="digits-ipc10", base="fast", version=1)
        copied(tmp_path / "results", record)
        assert len(published(tmp_path, installed())) == 1
        newest = load_track("digits-ipc10", installed())
        folder = copied(tmp_path / "runs", record)
        other = tmp_path / "other"
        assert f"its track is digits-ipc10@1, installed is {newest.id}; judge the set again" in (
            refused(folder, other)
        )
        return
    folder = copied(tmp_path / "runs", on_track(version=version))
    line = refused(folder, tmp_path / "board")
    assert f"its track is fast@{version}, installed is fast@1; {told}" in line


def test_other_settings_or_plugins_of_an_attack_are_refused(tmp_path) -> None:
    record = example("random").record
    for key, value, line in (
        ("config", {"steps": 1}, "its attack pgd has other settings"),
        (
            "plugin",
            "theirs",
            "its attack pgd is of plugin theirs, the track's is of plugin attacks",
        ),
    ):
        weak = record.attacks[2].model_copy(update={key: value})
        folder = copied(tmp_path / key, forged(record, attacks=(*record.attacks[:2], weak)))
        assert line in refused(folder, tmp_path / "board")


def test_checks_that_were_left_out_are_named(tmp_path) -> None:
    record = example("random").record
    flags = tuple(flag for flag in record.flags if flag.name != "input gradient")
    line = refused(copied(tmp_path / "runs", forged(record, flags=flags)), tmp_path / "board")
    assert "sanity checks were left out: input gradient" in line


def test_a_name_of_an_installed_method_is_nobody_elses(tmp_path) -> None:
    record = renamed(example("random").record, "mat", plugin="theirs", distribution="theirs")
    line = refused(copied(tmp_path / "runs", record), tmp_path / "board")
    assert "the method name mat belongs to plugin mat of robustdd-bench, not to theirs" in line


def test_a_reference_that_nobody_can_check_is_refused(tmp_path) -> None:
    board = tmp_path / "board"
    line = refused(copied(tmp_path / "a", renamed(example("full").record, "all"), "full"), board)
    assert "a reference row, whose set is not published" in line
    claimed = renamed(example("random").record, "random", reference=True)
    line = refused(copied(tmp_path / "b", claimed), board)
    assert "method random makes distilled sets; it is no reference" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [("pixel_max", 0.5), ("learning_rate", 0.1), ("labels", "soft"), ("provenance", {"x": 1})],
)
def test_every_fact_of_the_set_has_to_be_the_sets(key, value, tmp_path) -> None:
    record = example("random").record
    said = record.distilled.model_copy(update={key: value})
    line = refused(copied(tmp_path / "runs", forged(record, distilled=said)), tmp_path / "board")
    assert "distilled.safetensors" in line
    assert ("does not hold the tensors" if key == "labels" else f"has {key} ") in line


def test_a_published_preview_is_made_from_the_set(tmp_path) -> None:
    folder = copied(tmp_path / "runs")
    wanted = (folder / "distilled.png").read_bytes()
    (folder / "distilled.png").write_text("<html>")
    done = publish_and_build(folder, tmp_path / "board", installed())
    assert (done.folder / "distilled.png").read_bytes() == wanted
    picture = done.folder / "distilled.png"
    picture.write_bytes((example("mtt").folder / "distilled.png").read_bytes())
    with pytest.raises(UsageError, match=r"distilled\.png is not a picture of the set"):
        published(tmp_path / "board")


def test_all_reasons_are_told_at_once_those_of_the_board_too(board, tmp_path) -> None:
    record = renamed(reseeded(example("random").record, 3), "mean")
    said = record.distilled.model_copy(update={"pixel_max": 0.5})
    flag = record.flags[0].model_copy(update={"passed": False})
    record = forged(record, distilled=said, flags=(flag, *record.flags[1:]))
    line = refused(copied(tmp_path / "runs", record), board)
    for part in ("sanity checks failed", "has pixel_max", "the images of mean (seed 3"):
        assert part in line


def test_a_copy_under_another_name_is_refused_with_both_names(board, tmp_path) -> None:
    record = example("random").record
    stolen = renamed(record, "mean")
    line = refused(copied(tmp_path / "a", stolen), board)
    assert (
        f"the images of mean (seed 0, run {stolen.run_id}) are those of random (seed 0, run "
        f"{record.run_id}): a run is on the board under one name"
    ) in line


@pytest.mark.parametrize(
    ("change", "shared"), [("nothing", "the students"), ("weights", "the outcomes")]
)
def test_a_copy_with_another_set_is_found_by_its_students(change, shared, board, tmp_path) -> None:
    record = renamed(example("random").record, "mean")
    found = DistilledSet.load(example("random").folder / "distilled.safetensors")
    found = dataclasses.replace(found, images=found.images * 0.999)
    record = refitted(record, found)
    if change == "weights":
        students = tuple(
            student.model_copy(update={"sha256": f"{student.index}" * 64})
            for student in record.students
        )
        record = forged(record, students=students)
    folder = copied(tmp_path / "runs", record)
    fit_set(folder, record, found)
    assert f"{shared} of mean" in refused(folder, board)


def test_another_seed_needs_its_own_students(board, tmp_path) -> None:
    copy = forged(example("random").record, seed=7)
    line = refused(copied(tmp_path / "a", copy), board)
    assert "the seeds of student 0 are not those of seed 7 on fast" in line
    line = refused(copied(tmp_path / "b", reseeded(example("random").record, 7)), board)
    assert "the students of random (seed 7" in line


def test_a_method_may_make_the_same_set_from_another_seed(board, tmp_path) -> None:
    record = reseeded(example("random").record, 2)
    students = tuple(
        student.model_copy(update={"sha256": f"{student.index}" * 64})
        for student in record.students
    )
    publish_and_build(copied(tmp_path, forged(record, students=students)), board, installed())
    (track,) = json.loads((board / "leaderboard.json").read_text())["tracks"]
    (row,) = track["rows"]
    assert row["seeds"] == [0, 2]
    assert "one set" in row["marks"]


def test_other_data_under_the_same_track_are_refused(board, tmp_path) -> None:
    record = example("mtt").record
    data = record.data.model_copy(update={"evaluation_sha256": "0" * 64})
    line = refused(copied(tmp_path / "runs", forged(record, data=data), "mtt"), board)
    assert "its data are not those of the other records of fast@1" in line


def test_references_share_the_data(board, tmp_path) -> None:
    publish_and_build(example("full").folder, board, installed())
    again = run(plan_of("full", seed=1), tmp_path)
    publish_and_build(again.folder, board, installed())
    # A published reference has no set; it can be published from there with its picture.
    first = publish_and_build(example("full").folder, board, installed()).folder
    other = publish_and_build(first, tmp_path / "other", installed())
    picture = (other.folder / "distilled.png").read_bytes()
    assert picture == (example("full").folder / "distilled.png").read_bytes()


def test_who_it_is_from_can_be_said_later_and_mended(board) -> None:
    folder = example("random").folder
    said = Submission(by="A group", licence="CC-BY-4.0")
    done = publish_and_build(folder, board, installed(), said)
    assert read_submission(done.folder) == said
    publish_and_build(folder, board, installed())
    assert read_submission(done.folder) == said
    publish_and_build(folder, board, installed(), Submission(by="B", link="https://b.org/x"))
    mended = read_submission(done.folder)
    assert mended == Submission(by="B", link="https://b.org/x", licence="CC-BY-4.0")
    (track,) = json.loads((board / "leaderboard.json").read_text())["tracks"]
    assert track["rows"][0]["runs"][0]["submission"]["by"] == "B"
    # Published on another board, the run takes along whom it is from.
    other = publish_and_build(done.folder, board.parent / "other", installed())
    assert other.submission == mended


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("by", "<b>me</b>"),
        ("by", "turned \u202e round"),
        ("by", "two\nlines"),
        ("by", ""),
        ("by", "x" * 201),
        ("link", "javascript:alert(1)"),
        ("link", "http://example.org"),
        ("paper", 'https://example.org/"onclick=x'),
        ("licence", "<MIT>"),
    ],
)
def test_what_is_said_is_checked_before_anything_is_copied(key, value, tmp_path, capsys) -> None:
    folder = str(example("random").folder)
    code = main(["publish", folder, "--board", str(tmp_path / "b"), f"--{key}", value])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith(f"error: --{key} takes ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "b").exists()


def test_nothing_said_is_no_submission_and_all_that_is_wrong_is_named() -> None:
    assert make_submission(by=None, link=None) is None
    with pytest.raises(UsageError, match=r"--by takes .*; --link takes .*; --licence takes"):
        make_submission(by="<b>", link="ftp://x", paper="https://x.org", licence="?")


def test_a_board_that_cannot_be_built_is_as_it_was(board, tmp_path, monkeypatch) -> None:
    other = run(plan_of("random", seed=1), tmp_path / "runs")
    before = tree(board)

    def fail(*_):
        raise RunFailedError("no")

    for folder, said in (
        (other.folder, None),
        (example("mtt").folder, Submission(by="A")),
        (example("random").folder, Submission(by="A")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(building, "page", fail)
            with pytest.raises(RunFailedError, match="no"):
                publish_and_build(folder, board, installed(), said)
        assert tree(board) == before
        assert {path.name for path in (board / "results/fast").iterdir()} == {"random"}
    # A damaged publication that is being replaced stays damaged.
    path = board / "results/fast/random" / example("random").record.run_id / "distilled.png"
    path.write_bytes(b"")
    before = tree(board)

    def interrupted() -> None:
        with placing(example("random").folder, board, installed()):
            assert path.read_bytes() != b""
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert tree(board) == before


def test_both_tables_are_written_or_neither(board, tmp_path, monkeypatch) -> None:
    before = tree(board)
    (board / "index.html").unlink()
    (board / "index.html").mkdir()
    with pytest.raises(RunFailedError, match=r"cannot write .*index\.html"):
        publish_and_build(example("mtt").folder, board, installed())
    (board / "index.html").rmdir()
    del before["index.html"]
    assert tree(board) == before


def test_two_processes_publish_one_after_the_other(board, monkeypatch) -> None:
    monkeypatch.setattr("robustdd_bench.board.publish.PATIENCE_S", 0.05)
    with locked(board), pytest.raises(RunFailedError, match="another process is writing to"):
        publish_and_build(example("mtt").folder, board, installed())
    monkeypatch.undo()
    done = []
    methods = ("mtt", "full")
    for method in methods:
        example(method)
    threads = [
        threading.Thread(
            target=lambda m=m: done.append(publish_and_build(example(m).folder, board, installed()))
        )
        for m in methods
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    content = json.loads((board / "leaderboard.json").read_text())
    assert {row["method"] for row in content["tracks"][0]["rows"]} == {"random", *methods}


def test_leftovers_of_a_killed_process_are_swept(board) -> None:
    left = board / "results/fast/mtt/.publishing.abcd1234"
    left.mkdir(parents=True)
    (left / "record.json").write_text("half")
    publish_and_build(example("mtt").folder, board, installed())
    assert not left.exists()


def test_a_board_that_is_a_file_is_a_line(tmp_path) -> None:
    (tmp_path / "board").write_text("")
    with pytest.raises(RunFailedError, match="cannot write"):
        publish(example("random").folder, tmp_path / "board")


def test_the_committed_board_is_the_installed_protocol() -> None:
    runs = published(Path(__file__).parent.parent / "leaderboard", installed())
    assert len(runs) >= 90


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("expert_precision", "default", "writes them (expert_precision); run it again"),
        ("luck", 7, "unknown key 'luck'"),
        ("experts", "2", "experts"),
    ],
)
def test_one_method_has_one_way_to_write_its_settings(key, value, line, tmp_path) -> None:
    """Else the same method could stand on the board twice."""
    record = example("mtt").record
    method = record.method.model_copy(update={"config": {**record.method.config, key: value}})
    folder = copied(tmp_path / "runs", forged(record, method=method), "mtt")
    assert line in refused(folder, tmp_path / "board")
