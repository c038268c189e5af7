"""`robustdd show experts` and `robustdd clean`: what lies under OUT, and what may be deleted."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
from tasks import RecordingReporter, digits_task

from robustdd_bench.cli.main import main
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.runs import cleaning as store
from robustdd_bench.runs.cleaning import find_garbage, free, list_experts
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe, ExpertStore

RECIPE = ExpertRecipe(
    epochs=2, learning_rate=0.05, batch_size=32, flavour="pgd", eps=0.1, attack_steps=1, ema=0.5
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with two real experts, made by the trainer itself."""
    out = tmp_path_factory.mktemp("trained")
    stored = ExpertStore(digits_task(out, per_class=12), RECIPE)
    for part in stored.parts(2):
        stored.train(part, RecordingReporter())
    return out, stored


def fill(path: Path, size: int = 10, age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def make_run(out: Path, run_id: str, status: str | None) -> Path:
    folder = out / "digits-ipc10" / "mat" / run_id
    fill(folder / ".lock", 0)
    fill(folder / "plan.json")
    fill(folder / "work" / "matching.safetensors", 1000)
    fill(folder / "cells" / "student-0.safetensors", 100)
    if status is not None:
        (folder / "record.json").write_text(json.dumps({"status": status}))
        fill(folder / "distilled.safetensors", 100)
    return folder


@pytest.fixture
def out(tmp_path):
    """A finished, a failed and an interrupted run, experts of two keys, and leftovers."""
    root = tmp_path / "runs"
    make_run(root, "a" * 12, "complete")
    make_run(root, "b" * 12, "failed")
    make_run(root, "c" * 12, None)
    for key in ("1" * 16, "2" * 16):
        fill(root / "store" / "experts" / key / "expert-0.safetensors", 500)
        fill(root / "store" / "experts" / key / "expert-0.safetensors.cell.json", 50)
    fill(root / "digits-ipc10" / "mat" / ("c" * 12) / "cells" / ".student-0.safetensors.abc_12de")
    fill(root / "store" / "sets" / ("." + "d" * 64 + ".safetensors.zzzzzzzz"), 70, age_s=3600)
    return root


def kinds(found):
    return sorted(item.kind for item in found.items)


# --- listing -----------------------------------------------------------------------------------


def test_experts_are_described_by_what_they_tell_of_themselves(trained):
    out, stored = trained
    (found,) = list_experts(out)
    assert found.key == stored.key
    assert (found.experts, found.epochs, found.damaged) == (2, 2, ())
    assert found.fact("recipe", "flavour") == "pgd"
    assert found.fact("recipe", "ema") == 0.5
    assert found.fact("seeds", "track") == "digits-tiny"
    assert found.weights == stored.load(2).at(0, 0).numel()
    assert 0 <= found.train_accuracy <= 1
    assert found.bytes == sum(part.output.stat().st_size for part in stored.parts(2))


def test_the_listing_prints_the_same_facts(trained, capsys):
    out, stored = trained
    assert main(["show", "experts", "--out", str(out), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["key"], found["flavour"], found["eps"]) == (stored.key, "pgd", 0.1)
    assert found["description"]["recipe"]["learning_rate"] == 0.05
    assert main(["show", "experts", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    for text in (stored.key, "digits-tiny", "pgd", f"{100 * found['train_accuracy']:.1f}", "KiB"):
        assert text in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "not readable"),
        (lambda content: content[: len(content) // 2], "not readable"),
        (lambda content: content.replace(b"robustdd-expert-1", b"robustdd-expert-9"), "not a"),
        (
            lambda content: content.replace(b'\\"epochs\\": 2', b'\\"epochs\\": 3'),
            "2 epochs, not 3",
        ),
        (lambda content: content.replace(b'\\"recipe\\"', b'\\"rezept\\"'), "damaged metadata"),
    ],
)
def test_a_damaged_expert_is_named_and_the_others_are_listed(
    trained, tmp_path, capsys, damage, reason
):
    first, second = (part.output.read_bytes() for part in trained[1].parts(2))
    folder = tmp_path / "store" / "experts" / trained[1].key
    folder.mkdir(parents=True)
    assert damage(first) != first
    (folder / "expert-0.safetensors").write_bytes(damage(first))
    (folder / "expert-1.safetensors").write_bytes(second)
    assert main(["show", "experts", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert trained[1].key in shown.out
    assert "expert-0.safetensors: " in shown.err
    assert reason in shown.err
    assert shown.err.count("\n") == 1
    (found,) = list_experts(tmp_path)
    assert (found.experts, len(found.damaged)) == (1, 1)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_without_a_store_there_are_no_experts(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert main(["show", "experts", "--out", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out == "(none)\n"


def test_listing_and_cleaning_import_no_torch(trained):
    code = (
        "import sys; from robustdd_bench.cli.main import main; "
        f"assert main(['show', 'experts', '--out', {str(trained[0])!r}]) == 0; "
        f"assert main(['clean', '--dry-run', '--out', {str(trained[0])!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


# --- what may be deleted -----------------------------------------------------------------------


def test_without_options_only_leftover_temporary_files_are_found(out):
    found = find_garbage(out)
    assert kinds(found) == ["temporary file", "temporary file"]
    assert found.bytes == 80
    assert found.kept == ()


def test_snapshots_are_kept_and_half_written_pictures_and_reports_are_not(out):
    folder = out / "digits-ipc10" / "mat" / ("a" * 12)
    picture = fill(folder / "snapshots" / "00000003.png")
    torn = {
        fill(folder / "snapshots" / ".00000003.png.abc_12de"),
        fill(folder / ".report.html.abc_12de"),
    }
    found = find_garbage(out, runs=True)
    assert torn <= {item.path for item in found.items}
    free(found, out)
    assert picture.exists()
    assert not any(path.exists() for path in torn)


def test_a_young_temporary_file_of_the_store_may_still_be_written(out):
    young = fill(out / "store" / "sets" / ("." + "e" * 64 + ".safetensors.yyyyyyyy"))
    assert young not in [item.path for item in find_garbage(out).items]


def test_runs_adds_work_of_finished_runs_and_failed_runs_but_nothing_of_interrupted_ones(out):
    found = find_garbage(out, runs=True)
    mat = out / "digits-ipc10" / "mat"
    assert {(item.kind, item.path) for item in found.items if item.kind != "temporary file"} == {
        ("work", mat / ("a" * 12) / "work"),
        ("failed run", mat / ("b" * 12)),
    }
    free(found, out)
    assert sorted(path.name for path in mat.iterdir()) == ["a" * 12, "c" * 12]
    assert (mat / ("a" * 12) / "distilled.safetensors").exists()
    assert (mat / ("a" * 12) / "cells" / "student-0.safetensors").exists()
    assert (mat / ("c" * 12) / "work" / "matching.safetensors").exists()
    assert find_garbage(out, runs=True).items == ()


@pytest.mark.parametrize(("which", "gone"), [("all", "12"), ("1" * 16, "1")])
def test_experts_are_deleted_by_key_or_all(out, which, gone):
    found = find_garbage(out, experts=which)
    freed = free(found, out)
    assert freed.bytes == found.bytes == 80 + 550 * len(gone)
    left = sorted(path.name for path in (out / "store" / "experts").iterdir())
    assert left == [key * 16 for key in "12" if key not in gone]


def test_a_run_whose_lock_is_held_is_not_touched_and_keeps_the_experts(out):
    folder = out / "digits-ipc10" / "mat" / ("b" * 12)
    with filelock.FileLock(folder / ".lock"):
        found = find_garbage(out, experts="all", runs=True)
        assert not any(folder == item.path for item in found.items)
        assert "experts" not in kinds(found)
        reasons = {one.path.name: one.reason for one in found.kept}
        assert reasons["b" * 12] == "a run is going on in it"
        assert reasons["1" * 16] == "a run is going on that may use it"
        free(found, out)
    assert (folder / "work" / "matching.safetensors").exists()
    assert (out / "store" / "experts" / ("1" * 16) / "expert-0.safetensors").exists()
    assert not (out / "digits-ipc10" / "mat" / ("a" * 12) / "work").exists()


def test_a_run_that_begins_between_the_question_and_the_deletion_is_kept(out):
    found = find_garbage(out, experts="all", runs=True)
    folder = out / "digits-ipc10" / "mat" / ("b" * 12)
    with filelock.FileLock(folder / ".lock"):
        freed = free(found, out)
    assert folder in [one.path for one in freed.kept]
    assert (folder / "record.json").exists()
    assert (out / "store" / "experts" / ("2" * 16)).exists()


def test_links_are_neither_followed_nor_deleted(out, tmp_path):
    precious = tmp_path / "elsewhere"
    make_run(precious, "f" * 12, "failed")
    fill(precious / "store" / "experts" / ("9" * 16) / "expert-0.safetensors")
    before = sorted(precious.rglob("*"))
    (out / "linked-track").symlink_to(precious / "digits-ipc10")
    (out / "digits-ipc10" / "linked").symlink_to(precious / "digits-ipc10" / "mat")
    (out / "digits-ipc10" / "mat" / ("e" * 12)).symlink_to(
        precious / "digits-ipc10" / "mat" / ("f" * 12)
    )
    (out / "store" / "experts" / ("9" * 16)).symlink_to(precious / "store" / "experts" / ("9" * 16))
    work = make_run(out, "d" * 12, "complete") / "work"
    (work / "link").symlink_to(precious)
    free(find_garbage(out, experts="all", runs=True), out)
    assert not work.exists()
    assert sorted(precious.rglob("*")) == before
    assert (out / "store" / "experts" / ("9" * 16)).is_symlink()
    assert [one.key for one in list_experts(out)] == []


def test_a_folder_that_becomes_a_link_after_it_was_found_is_kept(out, tmp_path):
    found = find_garbage(out, experts="1" * 16)
    folder = out / "store" / "experts" / ("1" * 16)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    free(found, out)
    assert (tmp_path / "moved" / "expert-0.safetensors").exists()


def test_an_output_folder_that_is_a_link_itself_is_cleaned(out, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(out)
    assert len(free(find_garbage(link, runs=True), link).items) == 4


@pytest.mark.parametrize("name", ["missing", "stranger", "file"])
def test_a_folder_without_runs_is_refused(tmp_path, name):
    fill(tmp_path / "stranger" / "photos" / "2024" / "work" / "precious.json")
    fill(tmp_path / "stranger" / ".notes.json.abcdefgh")
    fill(tmp_path / "file")
    with pytest.raises(UsageError, match="holds no runs"):
        find_garbage(tmp_path / name, experts="all", runs=True)
    assert (tmp_path / "stranger" / ".notes.json.abcdefgh").exists()


def test_an_unknown_key_is_refused(out):
    with pytest.raises(UsageError, match="no stored experts 'abc'"):
        find_garbage(out, experts="abc")


@pytest.mark.parametrize("record", ["", "[]", '{"status": 3}', '{"status": "complete"', "[" * 9999])
def test_a_run_with_an_unreadable_record_is_left_alone(out, record):
    folder = make_run(out, "d" * 12, "complete")
    (folder / "record.json").write_text(record)
    found = find_garbage(out, runs=True)
    assert not any(item.path.is_relative_to(folder) for item in found.items)


def test_what_cannot_be_deleted_is_one_line_that_counts_what_is_gone(out, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.shutil, "rmtree", refuse)
    with pytest.raises(RunFailedError, match=r"cannot delete .*: Permission denied; . of 4"):
        free(find_garbage(out, runs=True), out)


# --- the command -------------------------------------------------------------------------------


def test_clean_needs_a_yes_where_nobody_can_be_asked(out, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["clean", "--experts", "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        "error: clean deletes files; add --yes, or --dry-run to see which\n"
    )
    assert len(find_garbage(out, experts="all").items) == 4


def test_a_dry_run_says_what_and_how_much_and_deletes_nothing(out, capsys):
    before = sorted(out.rglob("*"))
    assert main(["clean", "--experts", "--runs", "--dry-run", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    for text in ("failed run", "work", "temporary file", "experts", "1" * 16, "550 B"):
        assert text in shown.out
    assert shown.err.startswith("6 items, ")
    assert shown.err.endswith(" would be deleted\n")
    assert sorted(out.rglob("*")) == before


def test_clean_reports_what_it_deleted(out, capsys):
    command = ["clean", "--experts", "1" * 16, "--yes", "--json", "--out", str(out)]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dry_run"], found["bytes"], found["kept"]) == (False, 630, [])
    assert [item["kind"] for item in found["items"]].count("experts") == 1
    assert not (out / "store" / "experts" / ("1" * 16)).exists()
    assert main(command) == 2
    assert "no stored experts" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_clean_asks_first(out, capsys, monkeypatch, answer):
    monkeypatch.setattr("robustdd_bench.cli.clean.is_terminal", lambda stream: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{answer}\n"))
    assert main(["clean", "--experts", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "Delete 4 items, 1.2 KiB" in shown.out + shown.err
    assert (out / "store" / "experts" / ("1" * 16)).exists() == (answer == "n")


def test_a_failed_run_that_is_deleted_can_be_begun_again(out):
    folder = out / "digits-ipc10" / "mat" / ("b" * 12)
    free(find_garbage(out, runs=True), out)
    assert not folder.exists()
    from robustdd_bench.runs.planned import _locked

    with _locked(folder):
        assert (folder / ".lock").exists()
