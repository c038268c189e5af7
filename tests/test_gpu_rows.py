"""Rows of the board within a budget: what a call runs, interrupts, brings back and goes on from."""

from __future__ import annotations

import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
from small_runs import MATCHING, TRACK, copy_of, example

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
# Writes a step, waits for SIGINT, and ends as `robustdd run` does. A test run in the background of
# a shell ignores SIGINT, and so would its children.
ENDLESS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = next(pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).glob("*/*/*/plan.json")).parent
(folder / "metrics.jsonl").write_text('{"step": 7, "stage": "distill/matching"}\\n')
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted; kept: experts 2/2", file=sys.stderr)
    sys.exit(130)
"""


@pytest.fixture(scope="module", autouse=True)
def path():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture
def call(tmp_path, monkeypatch):
    """A call of the script; returns its exit code and its rows.json."""
    import rows

    # The script takes SIGINT and SIGTERM for itself.
    monkeypatch.setattr(rows.signal, "signal", lambda *_: None)

    def run(*words: str, out: str = "out", work: str = "work", least: str = "0"):
        where = ["--out", str(tmp_path / out), "--work", str(tmp_path / work), "--least", least]
        code = rows.main(["--tiny", "--device", "cpu", *where, *words])
        return code, rows.Rows.model_validate_json((tmp_path / out / "rows.json").read_text())

    return run


def sweep(folder: Path, *methods: str) -> str:
    """A sweep of methods on the small track."""
    path = folder / "sweep.toml"
    settings = "".join(f"{text}\n" for text in MATCHING)
    text = f'methods = {json.dumps(methods)}\ntracks = ["{TRACK}"]\n[settings.mtt]\n{settings}'
    path.write_text(text)
    return str(path)


def begun(out: Path) -> Path:
    """A run laid under `out` as one that has no record yet, and an expert in the store."""
    run = copy_of(example("random"), out)
    (run / "record.json").unlink()
    expert = out / "store" / "experts" / "0123456789abcdef" / "expert-1.safetensors"
    expert.parent.mkdir(parents=True)
    expert.write_bytes(b"weights")
    return run


def test_a_row_is_run_packed_and_not_run_again_elsewhere(call, tmp_path, capsys, monkeypatch):
    import rows

    code, report = call("--sweep", sweep(tmp_path, "random", "mtt"), "--only", "random")
    assert code == 0
    (row,) = report.rows
    assert (row.status, report.tiny, report.not_packed) == ("complete", True, [])
    assert row.command.startswith("robustdd run --method random")
    assert {stage["stage"] for stage in row.result["stages"]} > {"students", "attacks"}
    assert 0 <= row.result["clean"]["mean"] <= 1
    assert [level["eps"] for level in row.result["robust"]] == [0.05, 0.10]
    assert "clean" in capsys.readouterr().out
    assert any(name.endswith("record.json") for name in report.packed)
    assert not any("student-" in name for name in report.packed)

    monkeypatch.setattr(rows, "PROGRAM", ("/nowhere",))
    archive = tmp_path / "out" / "rows.tar"
    code, again = call(
        *("--method", "random", "--track", str(TRACK), "--from-archive", str(archive)),
        *("--max-mib", ".05"), out="again", work="elsewhere",
    )  # fmt: skip
    assert (code, again.rows[0].note, again.rows[0].result) == (0, "was there", row.result)
    # Split into parts, and put together again.
    parts = sorted((tmp_path / "again").glob("rows.tar*"))
    assert len(parts) > 1
    assert max(part.stat().st_size for part in parts) <= 0.05 * 2**20
    code, third = call(
        *("--method", "random", "--track", str(TRACK), "--from-archive", str(parts[0])),
        out="third", work="third-work",
    )  # fmt: skip
    assert (third.rows[0].note, third.packed) == ("was there", report.packed)


def test_at_the_end_of_the_budget_a_run_is_interrupted_and_kept(call, tmp_path, monkeypatch):
    import rows

    monkeypatch.setattr(rows, "PROGRAM", (sys.executable, "-c", ENDLESS))
    folder = begun(tmp_path / "work")
    methods = sweep(tmp_path, "random", "mtt")
    code, report = call("--sweep", methods, "--budget", "1.5", "--keep-experts", least="0.5")
    first, second = report.rows
    assert (code, first.status, second.status) == (0, "interrupted", "left out")
    assert first.note == "interrupted; kept: experts 2/2 (at step 7 of distill/matching)"
    assert (first.result, second.result) == (None, None)
    # What the next call needs: plan, weights of students, experts.
    packed = {Path(name).name for name in report.packed}
    assert {"plan.json", "student-0.safetensors", "expert-1.safetensors"} <= packed
    assert not any("mtt" in name for name in report.packed)
    assert folder.is_dir()


def test_a_run_that_fails_is_told_and_the_rest_goes_on(call, tmp_path, monkeypatch, capsys):
    import rows

    program = (sys.executable, "-c", "import sys; print('no such data'); sys.exit(2)")
    monkeypatch.setattr(rows, "PROGRAM", program)
    code, report = call("--sweep", sweep(tmp_path, "random", "mtt"))
    assert code == 1
    assert [(row.status, row.note) for row in report.rows] == [("failed", "no such data")] * 2
    assert capsys.readouterr().out.count("no such data") == 2


@pytest.mark.slow
def test_an_interrupted_row_goes_on_from_the_archive(call, tmp_path):
    methods = sweep(tmp_path, "mtt")
    words = ("--sweep", methods, "--keep-experts")
    for attempt in range(20):
        options = ("--from-archive", str(tmp_path / "out" / "rows.tar")) if attempt else ()
        code, report = call(*words, *options, "--budget", "12", work=f"work-{attempt}")
        if report.rows[0].status == "complete":
            break
    assert (code, report.rows[0].status) == (0, "complete")
    assert report.rows[0].result["run_id"] == example("mtt").record.run_id


def test_what_has_no_room_is_named_and_takes_its_receipt_along(tmp_path):
    import archive

    work = tmp_path / "work"
    run = copy_of(example("random"), work)
    (run / "distilled.safetensors").write_bytes(bytes(300_000))
    chosen = archive.choose(work, [run], students=False, experts=False)
    assert chosen[0] == run / "record.json"
    packed, dropped = archive.pack(work, chosen, tmp_path / "out", most_bytes=200_000, most_files=1)
    assert [Path(name).name for name in dropped] == [
        "distilled.safetensors", "distilled.safetensors.cell.json",
    ]  # fmt: skip
    assert (tmp_path / "out" / "rows.tar").stat().st_size <= 200_000
    assert archive.unpack(tmp_path / "out" / "rows.tar", tmp_path / "there") == len(packed)
    # What is there already is newer.
    assert archive.unpack(tmp_path / "out" / "rows.tar", tmp_path / "there") == 0


def test_a_part_that_is_missing_is_an_error_and_nothing_runs(call, tmp_path, capsys):
    import archive

    work = tmp_path / "from"
    run = copy_of(example("random"), work)
    chosen = archive.choose(work, [run], students=True, experts=False)
    archive.pack(work, chosen, tmp_path, most_bytes=20_000, most_files=20)
    (tmp_path / "rows.tar.1").unlink()
    with pytest.raises(tarfile.TarError):
        archive.unpack(tmp_path / "rows.tar", tmp_path / "there")
    words = ("--method", "random", "--track", str(TRACK))
    with pytest.raises(SystemExit):
        call(*words, "--from-archive", str(tmp_path / "rows.tar"))
    # Where the first part ends decides who notices.
    assert re.search("error: .*(unexpected end of data|ends too early)", capsys.readouterr().err)
