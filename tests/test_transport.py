"""Files that travel between machines: what a cell reads and leaves, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from small_runs import TRACK, files, plan_of, registry

from robustdd_bench.errors import UsageError
from robustdd_bench.executors import Cell, read_receipt
from robustdd_bench.protocol.datasets import ImageData, Split
from robustdd_bench.protocol.loading import load_data, read_data, write_data
from robustdd_bench.protocol.tracks import load_track
from robustdd_bench.runs.cells import all_cells
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution import transport
from robustdd_bench.runs.execution.transport import (
    DamagedFileError,
    FileCache,
    TravellingFile,
    inside,
    left_by,
    pieces_of,
    read_by,
    receive,
    relative,
    replace_checkpoint,
    travelling,
)
from robustdd_bench.runs.execution.worker import OtherDataError, Worker
from robustdd_bench.runs.planned import message_of
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.runs.work import run_cell


def travel(start: Path, end: Path, paths) -> None:
    for file in travelling(start, paths):
        receive(end, file, pieces_of(start / file.path))


@pytest.mark.parametrize("method", ["mat", "random"])
def test_a_worker_that_sees_only_what_travelled_leaves_what_a_run_leaves(method, tmp_path) -> None:
    plan, here, there = plan_of(method), tmp_path / "here", tmp_path / "there"
    context = RunContext(plan, registry(), here, Path("data"), witnesses=True)
    message = {**message_of(context), "out": str(there), "data_root": str(tmp_path)}
    assert str(here) not in json.dumps(message)
    worker = Worker(message, registry())
    for cell in all_cells(context):
        travel(here, there, read_by(cell))
        worker.run(cell.name, lambda event: None)
        left = [there / relative(here, path) for path in left_by(cell)]
        travel(there, here, left)
        assert cell.done(), cell.name
        for path in files(there).values():  # it gets nothing that it did not ask for
            path.unlink()
    ours = {name: path.read_bytes() for name, path in files(context.folder).items()}
    alone = RunContext(plan, registry(), tmp_path / "alone", Path("data"), witnesses=True)
    with NullReporter(alone.folder) as reporter:
        for cell in all_cells(alone):
            run_cell(alone, cell, reporter)
    theirs = {name: path.read_bytes() for name, path in files(alone.folder).items()}
    told = (".cell.json", ".jsonl", ".log")  # by the reporter, or with what it cost
    results = {n for n in theirs if not n.endswith(told) and not n.startswith(("work/", "snapsh"))}
    assert results <= ours.keys()
    assert any(name.endswith(".safetensors") and "pgd" in name for name in results), "witnesses"
    for name in results:
        assert ours[name] == theirs[name], name


def test_what_a_distillation_resumes_from_is_read_by_it_and_a_receipt_is_left_last(
    tmp_path,
) -> None:
    cell = Cell(stage="distill", name="distill", output=tmp_path / "run" / "set", inputs=())
    (tmp_path / "run" / "work").mkdir(parents=True)
    for name in ("late", "early"):
        (tmp_path / "run" / "work" / name).write_text(name)
    os.utime(tmp_path / "run" / "work" / "early", (1, 1))
    (tmp_path / "run" / "work" / ".late.abcdefgh").write_text("torn")
    assert [path.name for path in read_by(cell)] == ["early", "late"]
    student = Cell(stage="students", name="students/0", output=cell.output, beside=(Path("x"),))
    assert read_by(student) == []
    assert left_by(student) == [Path("x"), cell.output, cell.receipt_path]


def test_a_file_that_was_changed_on_its_way_is_refused_and_what_was_there_stays(tmp_path) -> None:
    (tmp_path / "set").write_bytes(b"before")
    file = TravellingFile("set", hashlib.sha256(b"after").hexdigest(), 5)
    with pytest.raises(DamagedFileError, match="arrived damaged"):
        receive(tmp_path, file, [b"aft", b"eR"])
    assert (tmp_path / "set").read_bytes() == b"before"
    receive(tmp_path, file, [b"aft", b"er"])
    assert (tmp_path / "set").read_bytes() == b"after"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", "a\\..\\x"])
def test_a_file_goes_nowhere_but_into_the_runs_folders(path, tmp_path) -> None:
    with pytest.raises(DamagedFileError, match="must lie in the run's folders"):
        inside(tmp_path, path)


def test_a_tampered_output_has_no_receipt_that_holds(tmp_path) -> None:
    plan = plan_of("random")
    context = RunContext(plan, registry(), tmp_path, Path("data"))
    (cell,) = [cell for cell in all_cells(context) if cell.stage == "distill"]
    Worker(message_of(context), registry()).run("distill", lambda event: None)
    assert cell.done()
    assert read_receipt(cell.receipt_path) is not None
    cell.output.write_bytes(cell.output.read_bytes() + b" ")
    assert not cell.done()


# --- checkpoints -------------------------------------------------------------------------------


def test_a_checkpoint_replaces_the_older_one_whole_and_nothing_else(tmp_path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    cache = FileCache(tmp_path / "cache")
    for name, text in (("run/work/a", "new"), ("run/work/deep/b", "b")):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(text)
    (here / "run" / "work").mkdir(parents=True)
    (here / "run" / "work" / "old").write_text("old")
    (here / "run" / "set").write_text("set")
    found = cache.snapshot(there, there / "run" / "work")
    pieces = {file.path: iter([cache.read(file.sha256, 0)]) for file in found}
    replace_checkpoint(here, here / "run" / "work", found, pieces)
    assert {name: path.read_text() for name, path in files(here).items()} == {
        "run/work/a": "new",
        "run/work/deep/b": "b",
        "run/set": "set",
    }
    elsewhere = [found[0]._replace(path="run/set")]
    with pytest.raises(DamagedFileError, match="no part of a checkpoint"):
        replace_checkpoint(here, here / "run" / "work", elsewhere, {})


def test_a_snapshot_is_of_one_moment_while_files_are_replaced(tmp_path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()

    def write(step: int) -> None:
        for name in ("a", "b"):
            (tmp_path / "next").write_text(f"step {step}")
            os.replace(tmp_path / "next", folder / name)

    class Disturbed(FileCache):
        """A method writes after each of the first copies."""

        copies = 0

        def adopt(self, out, path):
            file = super().adopt(out, path)
            self.copies += 1
            if self.copies <= 5:
                write(self.copies)
            return file

    write(0)
    cache = Disturbed(tmp_path / "cache")
    found = cache.snapshot(tmp_path, folder)
    assert {file.path: cache.read(file.sha256, 0) for file in found} == {
        "work/a": b"step 5",
        "work/b": b"step 5",
    }
    cache.copies = -100
    assert cache.snapshot(tmp_path, folder) is None, "it never stands still"


# --- the cache ---------------------------------------------------------------------------------


def test_the_cache_keeps_what_was_used_last(tmp_path) -> None:
    cache = FileCache(tmp_path / "cache", most=250)
    names = []
    for i in range(3):
        content = bytes([i]) * 100
        file = TravellingFile("x", hashlib.sha256(content).hexdigest(), 100)
        names.append(file)
        if i == 2:
            os.utime(cache.path(names[0].sha256), (2e9, 2e9))
            os.utime(cache.path(names[1].sha256), (1e9, 1e9))
        cache.add(file, [content])
    assert [cache.has(file.sha256) for file in names] == [True, False, True]
    cache.place(tmp_path / "out", names[2]._replace(path="deep/file"))
    assert (tmp_path / "out" / "deep" / "file").read_bytes() == bytes([2]) * 100
    with pytest.raises(DamagedFileError):
        cache.add(names[1], [b"other"])


def test_large_files_travel_in_pieces(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(transport, "PIECE", 10)
    (tmp_path / "x").write_bytes(bytes(range(25)))
    assert [len(piece) for piece in pieces_of(tmp_path / "x")] == [10, 10, 5]
    cache = FileCache(tmp_path / "cache")
    file = cache.adopt(tmp_path, tmp_path / "x")
    assert [len(cache.read(file.sha256, at)) for at in range(0, file.size, 10)] == [10, 10, 5]


# --- data --------------------------------------------------------------------------------------


def test_data_are_handed_on_bit_for_bit(tmp_path) -> None:
    track = load_track(str(TRACK), registry())
    data = load_data(track, registry(), tmp_path)
    write_data(tmp_path / "data", data)
    again = read_data(tmp_path / "data")
    assert [s.sha256() for s in (again.train, again.test)] == [
        s.sha256() for s in (data.train, data.test)
    ]
    assert again.num_classes == data.num_classes
    (tmp_path / "bad").write_bytes(b"bad")
    with pytest.raises(UsageError):
        read_data(tmp_path / "bad")


def test_a_worker_refuses_other_data_and_takes_those_that_it_is_handed(tmp_path) -> None:
    context = RunContext(plan_of("random"), registry(), tmp_path / "out", Path("data"))
    message = message_of(context)
    other = {**message, "data": ["0" * 64, message["data"][1]]}
    with pytest.raises(OtherDataError, match="are not those that the run was planned with"):
        Worker(other, registry())
    data = context.whole_data()
    changed = ImageData(Split(data.train.images * 0.5, data.train.labels), data.test, 10)
    write_data(tmp_path / "handed", data)
    write_data(tmp_path / "changed", changed)
    with pytest.raises(OtherDataError):
        Worker({**message, "data_file": str(tmp_path / "changed")}, registry())
    worker = Worker({**message, "data_file": str(tmp_path / "handed")}, registry())
    worker.run("distill", lambda event: None)
    assert context.set_path.is_file()
    assert torch.equal(worker._context.train.images, context.train.images)
