"""The board: what may be published, that it stays as it is, and the tables made of it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from small_runs import TRACK, copy_of, example, plan_of, run

from robustdd_bench.board.build import build
from robustdd_bench.board.publish import Published, current, publish, published
from robustdd_bench.board.rows import FRONT, track_content, track_order
from robustdd_bench.board.standings import spread, standings
from robustdd_bench.board.views.tables import board_tables, run_table
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.records.parts import AggregateInfo
from robustdd_bench.records.record import Record, make_record, read_record, write_record
from robustdd_bench.text.tables import markdown, with_deviation

METHODS = ("random", "mtt", "full")


def bent(record: Record, **changes) -> Record:
    """The record with other values, signed again."""
    values = {name: getattr(record, name) for name in Record.model_fields} | changes
    del values["results_sha256"]
    return make_record(**values)


def flagged(record: Record) -> Record:
    flag = record.flags[3].model_copy(update={"passed": False, "evidence": "seen"})
    return bent(record, flags=(*record.flags[:3], flag, *record.flags[4:]))


@pytest.fixture
def board(tmp_path):
    for method in METHODS:
        publish(example(method).folder, tmp_path / "board")
    return tmp_path / "board"


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_published_run_is_record_set_and_preview(board) -> None:
    record = example("random").record
    folder = board / "results" / "fast" / "random" / record.run_id
    assert sorted(p.name for p in folder.iterdir()) == [
        "distilled.png",
        "distilled.safetensors",
        "record.json",
    ]
    for name in ("distilled.png", "distilled.safetensors", "record.json"):
        assert (folder / name).read_bytes() == (example("random").folder / name).read_bytes()
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_reference_is_published_without_its_set(board) -> None:
    folder = board / "results" / "fast" / "full" / example("full").record.run_id
    assert sorted(p.name for p in folder.iterdir()) == ["distilled.png", "record.json"]
    assert [r.record.method.name for r in published(board)] == ["full", "mtt", "random"]


def test_publishing_again_changes_nothing(board) -> None:
    before = tree(board)
    for method in METHODS:
        again = publish(example(method).folder, board)
        assert isinstance(again, Published)
    assert tree(board) == before


def test_the_same_run_called_by_another_command_is_the_same_publication(board, tmp_path) -> None:
    folder = copy_of(example("random"), tmp_path / "runs")
    record = example("random").record
    write_record(folder / "record.json", bent(record, command=f"{record.command} --preset other"))
    before = tree(board)
    publish(folder, board)
    assert tree(board) == before


def test_a_damaged_publication_is_repaired(board) -> None:
    record = example("random").record
    path = board / "results/fast/random" / record.run_id / "distilled.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"distilled\.safetensors is damaged: it has \d+ bytes"):
        published(board)
    publish(example("random").folder, board)
    assert path.read_bytes() == (example("random").folder / path.name).read_bytes()
    assert sorted(p.name for p in path.parents[1].iterdir()) == [record.run_id]


def test_other_results_of_the_same_plan_do_not_replace_published_ones(board, tmp_path) -> None:
    folder = copy_of(example("random"), tmp_path / "runs")
    before = tree(board)
    record = example("random").record
    first = record.students[0].model_copy(update={"final_loss": 0.5})
    write_record(folder / "record.json", bent(record, students=(first, record.students[1])))
    with pytest.raises(UsageError, match="is published with other results of the same plan"):
        publish(folder, board)
    assert tree(board) == before


def test_a_validation_run_is_refused(tmp_path) -> None:
    finished = run(plan_of("random", validate=True), tmp_path / "runs")
    assert not finished.record.publishable
    with pytest.raises(UsageError, match="validation split, which is for tuning"):
        publish(finished.folder, tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_a_failed_run_is_refused_with_its_reason(tmp_path) -> None:
    plan = plan_of("nan")
    with pytest.raises(Exception, match="NaN"):
        run(plan, tmp_path)
    with pytest.raises(UsageError, match="the run failed: the distilled images hold NaN"):
        publish(plan.folder(tmp_path), tmp_path / "board")


def test_all_reasons_are_told_at_once(tmp_path) -> None:
    finished = run(plan_of("random", validate=True), tmp_path)
    folder = finished.folder
    write_record(folder / "record.json", flagged(finished.record))
    found = DistilledSet.load(folder / "distilled.safetensors")
    dataclasses.replace(found, images=found.images * 0.5).save(folder / "distilled.safetensors")
    with pytest.raises(UsageError) as caught:
        publish(folder, tmp_path / "board")
    text = str(caught.value)
    name = finished.record.flags[3].name
    for reason in (
        "validation split",
        f"sanity checks failed: {name}",
        "is not the set the record speaks of",
    ):
        assert reason in text
    assert "\n" not in text


def test_a_flagged_run_is_refused(tmp_path) -> None:
    folder = copy_of(example("random"), tmp_path)
    record = flagged(example("random").record)
    assert not record.publishable
    write_record(folder / "record.json", record)
    with pytest.raises(UsageError, match="sanity checks failed"):
        publish(folder, tmp_path / "board")


def test_a_folder_that_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"no file .*record\.json"):
        publish(tmp_path, tmp_path / "board")


@pytest.mark.parametrize("place", ["fast/random/000000000000", "fast/mat/{id}", "{id}", "a/b/c/d"])
def test_a_record_that_lies_elsewhere_is_noticed(place, board) -> None:
    record = example("random").record
    source = board / "results/fast/random" / record.run_id
    target = board / "results" / place.format(id=record.run_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)
    line = f"the record belongs under fast/random/{record.run_id}"
    with pytest.raises(UsageError, match=line):
        published(board)


def test_what_a_killed_publication_leaves_is_passed_over(board) -> None:
    left = board / "results/fast/random/.publishing.abcd1234"
    left.mkdir()
    (left / "record.json").write_text("half")
    assert len(published(board)) == len(METHODS)


def test_an_edited_publication_is_noticed(board) -> None:
    path = board / "results/fast/random" / example("random").record.run_id / "record.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(UsageError, match="is not a valid record"):
        published(board)


def test_two_protocols_under_one_name_and_version_are_noticed(board, tmp_path) -> None:
    track = tmp_path / "t.toml"
    track.write_text(TRACK.read_text().replace("epochs = 3", "epochs = 4"))
    finished = run(plan_of("random", track=str(track)), tmp_path / "runs")
    before = tree(board)
    with pytest.raises(UsageError, match="a changed protocol needs a new version"):
        publish(finished.folder, board)
    assert tree(board) == before
    place = board / "results" / finished.folder.relative_to(tmp_path / "runs")
    place.mkdir()
    for name in ("record.json", "distilled.safetensors", "distilled.png"):
        shutil.copyfile(finished.folder / name, place / name)
    with pytest.raises(UsageError, match="a changed protocol needs a new version"):
        published(board)


def test_only_the_newest_version_of_a_track_is_compared(board, tmp_path) -> None:
    track = tmp_path / "t.toml"
    track.write_text(TRACK.read_text().replace("version = 1", "version = 2"))
    finished = run(plan_of("random", track=str(track)), tmp_path / "runs")
    publish(finished.folder, board)
    runs = published(board)
    assert len(runs) == len(METHODS) + 1
    assert [r.run_id for r in current(runs, "fast")] == [finished.record.run_id]
    assert current(runs, "nothing") == []


def test_the_board_is_the_same_byte_for_byte_whoever_builds_it(board, tmp_path) -> None:
    build(board)
    first = (board / "leaderboard.json").read_bytes()
    other = tmp_path / "elsewhere"
    for method in reversed(METHODS):
        publish(example(method).folder, other)
    build(other)
    assert (other / "leaderboard.json").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_the_board_ranks_methods_and_puts_references_last(board) -> None:
    written = build(board).model_dump(mode="json")
    content = json.loads((board / "leaderboard.json").read_text())
    assert content == written
    (track,) = content["tracks"]
    assert (track["track"], track["version"], track["headline_eps"]) == ("fast", 1, 0.1)
    assert [attack["name"] for attack in track["attacks"]] == ["noise", "fgsm", "pgd"]
    assert [row["reference"] for row in track["rows"]] == [False, False, True]
    headlines = [row["headline"]["mean"] for row in track["rows"][:2]]
    assert headlines == sorted(headlines, reverse=True)
    for entry in track["rows"]:
        (one,) = entry["runs"]
        record = read_record(board / one["folder"] / "record.json")
        assert one["clean"] == record.aggregates.clean.model_dump(mode="json")
        assert entry["clean"]["mean"] == record.aggregates.clean.mean
        assert entry["clean"]["std_students"] == record.aggregates.clean.std
        assert entry["clean"]["std_seeds"] is None
        assert [r["eps"] for r in entry["robust"]] == track["ladder"]


def test_runs_of_several_seeds_are_one_row_with_the_deviation_over_seeds(tmp_path) -> None:
    records = [example("random").record]
    for seed in (1, 2):
        plan = plan_of("random", seed=seed)
        records.append(run(plan, tmp_path).record)
    (standing,) = standings(reversed(records))
    means = [r.aggregates.headline.mean for r in records]
    centre = sum(means) / 3
    assert standing.headline.mean == pytest.approx(centre)
    deviation = (sum((m - centre) ** 2 for m in means) / 2) ** 0.5
    assert standing.headline.std_seeds == pytest.approx(deviation)
    within = [r.aggregates.headline.std for r in records]
    assert standing.headline.std_students == pytest.approx(sum(within) / 3)
    assert [r.seed for r in standing.records] == [0, 1, 2]
    runs = [Published(record, tmp_path / record.run_id) for record in records]
    table = board_tables(track_content(runs, tmp_path))["hard"]
    cells = dict(zip(table.headings(), table.texts()[0], strict=True))
    assert cells["seeds"] == "3"
    assert cells["0.10 *"] == f"{100 * centre:.1f} ± {100 * deviation:.1f}"
    assert standing.headline.low < centre < standing.headline.high


def test_another_configuration_is_another_row() -> None:
    record = example("random").record
    other = record.model_copy(
        update={"method": record.method.model_copy(update={"config": {"x": 1}})}
    )
    assert len(standings([record, other])) == 2
    of_one = spread([record.aggregates.clean])
    clean = record.aggregates.clean
    assert (of_one.mean, of_one.std_seeds, of_one.std_students) == (clean.mean, None, clean.std)


def test_an_empty_board_is_a_board(tmp_path) -> None:
    assert build(tmp_path).tracks == ()


def test_the_front_track_comes_first_the_others_by_name() -> None:
    names = ["digits-ipc1", "cifar10-ipc5", FRONT, "digits-ipc1"]
    assert track_order(names) == [FRONT, "cifar10-ipc5", "digits-ipc1"]


def test_methods_that_tie_keep_one_order() -> None:
    records = [example(m).record for m in METHODS]
    assert standings(records) == standings(reversed(records))


def test_rows_show_percent_with_deviation_and_mark_what_does_not_rank() -> None:
    record = example("full").record
    table = run_table(record)
    (cells,) = table.texts()
    assert table.headings() == ["method", "images", "clean", "0.05", "0.10 *"]
    assert cells[:2] == ["full (reference)", str(record.distilled.images)]
    clean = record.aggregates.clean
    assert cells[2] == f"{100 * clean.mean:.1f} ± {100 * clean.std:.1f}"
    assert run_table(flagged(example("random").record)).texts()[0][0] == "random (flagged)"


def test_a_single_student_has_no_deviation() -> None:
    info = AggregateInfo(
        mean=0.5, std=None, low=0.4, high=0.6, values=(0.5,), n_students=1, n_examples=100
    )
    assert with_deviation(info.mean, info.std) == "50.0"


def test_a_failed_run_has_no_row(tmp_path) -> None:
    plan = plan_of("nan")
    with pytest.raises(Exception, match="NaN"):
        run(plan, tmp_path)
    with pytest.raises(ValueError, match="has no results"):
        run_table(read_record(plan.folder(tmp_path) / "record.json"))


def test_a_table_in_markdown_escapes_its_separator() -> None:
    text = markdown(["a", "b"], [["x|y", "1"]])
    assert text == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n"
