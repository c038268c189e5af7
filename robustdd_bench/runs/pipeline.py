"""A run from plan to record: stages in order, each skipped where its result is there.

A run may be killed at any moment. Every cell's output is whole or absent, methods checkpoint their
loops, and nothing in the result depends on where the run was cut: started again, it ends in the
record that an unbroken run writes, costs apart.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.figures import save_distilled, save_robustness
from robustdd_bench.errors import RobustDDError, RunFailedError, UsageError
from robustdd_bench.files import file_lock, read_json, shown, write_json
from robustdd_bench.guard import blame_stranger, logged, plugin_of, told
from robustdd_bench.plugins import Registry
from robustdd_bench.records.environment import process
from robustdd_bench.records.plan import Plan
from robustdd_bench.records.record import Record, read_record, write_record
from robustdd_bench.runs.assemble import WITNESSES, assemble, failed, save_witnesses
from robustdd_bench.runs.cells import STAGES, Cell, receipts_hold
from robustdd_bench.runs.context import Workbench
from robustdd_bench.runs.executors import Executor, Job
from robustdd_bench.runs.folder import LOCK
from robustdd_bench.runs.progress.reporter import RunReporter
from robustdd_bench.runs.reuse import adopt
from robustdd_bench.runs.work import run_cell, threads

KEPT = ("record.json", "distilled.safetensors", "distilled.png", "robustness.png")
# What `files.atomic_write` leaves behind if it is killed between its two steps.
_TORN = re.compile(r"\..+\.[a-z0-9_]{8}")


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that ended: its record, its folder, and whether it had been there already."""

    record: Record
    folder: Path
    reused: bool


class RunLockedError(UsageError):
    """Another process is running the same plan into the same folder."""


ReporterFactory = Callable[[Path], contextlib.AbstractContextManager[RunReporter]]


@dataclass(slots=True)
class Position:
    """How far a run has come; for messages and for the record of a failure."""

    stage: str = "set-up"
    cell: str = "set-up"
    cells: dict[str, list[Cell]] = field(default_factory=dict)

    def known(self) -> list[Cell]:
        """The cells of the stages that were reached."""
        return [cell for cells in self.cells.values() for cell in cells]


def execute(
    plan: Plan,
    registry: Registry,
    executor: Executor,
    *,
    out: Path,
    data_root: Path,
    reporter: ReporterFactory,
    download: bool = False,
    fresh: bool = False,
    witnesses: bool = False,
    source: tuple[Path, Record] | None = None,
) -> Finished:
    """Run a plan, or what is left of it.

    Args:
        plan: what to run.
        registry: the installed plugins.
        executor: where cells run.
        out: the folder under which runs and the shared store live.
        data_root: where datasets are looked for.
        reporter: makes the reporter for the run's folder.
        download: whether a missing dataset may be downloaded.
        fresh: forget what this run has computed (stored experts, shared by runs, are kept).
        witnesses: keep an adversarial example of each student and example that fell.
        source: folder and record of a run whose distilled set is taken over; see `plan_again`.

    Raises:
        UsageError: the call cannot work.
        RunLockedError: another process is running the same plan.
        RunFailedError, PluginError: the run failed; a failed record has been written.
        KeyboardInterrupt: interrupted; the text says what is kept and how to go on.
    """
    said = plan.folder(out)  # as the caller named it
    out, data_root = out.absolute(), data_root.absolute()
    folder = plan.folder(out)
    process(plan.device)  # the code that runs is that of now, whatever is committed meanwhile
    with _locked(folder), threads(plan.threads):
        if fresh:
            _forget(folder)
        _sweep(folder)
        bench = Workbench(plan, registry, out, data_root, download=download, witnesses=witnesses)
        finished = _existing(bench)
        if finished is not None:
            return Finished(finished.record, said, reused=True)
        (folder / WITNESSES).unlink(missing_ok=True)  # of results that are not those to come
        started = _started(folder, plan)
        position = Position()
        with reporter(folder) as progress, logged(_log_of(progress)), progress.run(**_about(plan)):
            try:
                bench.prepare()
                if bench.missing_kernels is not None:
                    progress.note(bench.missing_kernels)
                if source is not None:
                    _adopt(bench, *source)
                run_stages(bench, executor, progress, out, position)
                position.stage = position.cell = "record"
                record = assemble(bench, position.known(), started)
                _save_figures(bench, record)
                if witnesses:
                    save_witnesses(bench, record)
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(_kept(bench, position)) from interrupt
            except UsageError:
                raise
            except BaseException as error:
                failure = failure_of(error, position.cell)
                record = failed(
                    bench, position.known(), started, position.stage, position.cell, failure
                )
                # On a full disk the record cannot be written either; the first reason is told.
                with contextlib.suppress(RunFailedError):
                    write_record(folder / "record.json", record)
                if failure is error:
                    raise
                raise failure from error
            write_record(folder / "record.json", record)
        shutil.rmtree(folder / "work", ignore_errors=True)
    return Finished(record, said, reused=False)


def _log_of(progress: RunReporter) -> Callable[[str], None]:
    """Says what plugins leave changed in the run's log; a full disk shows elsewhere."""

    def log(text: str) -> None:
        with contextlib.suppress(RunFailedError):
            progress.note(text)

    return log


def _about(plan: Plan) -> dict[str, Any]:
    """Which run it is, for loggers."""
    return {
        "run_id": plan.run_id(),
        "method": plan.method,
        "track": plan.track.name,
        "track_version": plan.track.version,
        "seed": plan.seed,
        "split": plan.split,
        "config": dict(plan.config),
        "command": plan.command(),
    }


def _adopt(bench: Workbench, run: Path, record: Record) -> None:
    """Take over a set, unless this run has made its own already."""
    if any(cell.done() for cell in bench.cells("distill")):
        return
    if record.data is not None and bench.data_hashes[0] != record.data.train_sha256:
        raise UsageError(f"the set of {run} was made of other data than those at hand")
    adopt(bench.folder, run, record, bench.adopted_cell())


def run_stages(
    bench: Workbench,
    executor: Executor,
    progress: RunReporter,
    out: Path,
    position: Position,
    stages: Sequence[str] = STAGES,
) -> None:
    """Let the executor run what is not done, stage after stage."""

    def run_here(cell: Cell) -> None:
        position.cell = cell.name
        try:
            run_cell(bench, cell, progress)
        except (OSError, KeyboardInterrupt):
            raise
        except BaseException as error:  # so that no executor is blamed for it
            failure = failure_of(error, cell.name)
            if failure is error:
                raise
            raise failure from error

    owner, name = plugin_of(executor), f"executor {type(executor).__name__!r}"
    for stage in stages:
        position.stage = position.cell = stage
        cells = position.cells[stage] = bench.cells(stage)
        left = [cell for cell in cells if not cell.done()]
        if not left:
            continue
        with progress.stage(stage, len(cells), len(cells) - len(left)) as step:

            def finished(cell: Cell, step: Callable[[], None] = step) -> None:
                step()

            job = Job(
                plan=bench.plan,
                out=out,
                data_root=bench.data_root,
                witnesses=bench.witnesses,
                run_here=run_here,
                finished=finished,
            )
            for wave in sorted({cell.wave for cell in left}):
                todo = [cell for cell in left if cell.wave == wave]
                with blame_stranger(owner, name):
                    executor.run(todo, job)
                undone = [cell.name for cell in todo if not cell.done()]
                if undone:
                    raise RunFailedError(f"the executor left cells undone: {', '.join(undone[:3])}")


def _save_figures(bench: Workbench, record: Record) -> None:
    plan = bench.plan
    assert record.aggregates is not None
    save_distilled(bench.folder / "distilled.png", bench.distilled(), bench.num_classes)
    save_robustness(
        bench.folder / "robustness.png",
        record.aggregates,
        plan.track,
        f"{plan.method} on {plan.track.name} ({plan.split} split, seed {plan.seed})",
    )


def failure_of(error: BaseException, where: str) -> RobustDDError:
    """What ended the run, as an error with one line for the user."""
    if isinstance(error, RobustDDError):
        return error
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return RunFailedError(
            f"out of memory in {where}: set a smaller batch size, or use a larger device"
        )
    return RunFailedError(f"{where} failed: {told(error)}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets it go when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make {shown(folder)}: {error.strerror or error}; see --out"
        ) from error
    try:
        held = file_lock(folder / LOCK, 0)
    except OSError as error:
        raise UsageError(
            f"cannot write into {shown(folder)}: {error.strerror or error}; see --out"
        ) from error
    if held is None:
        raise RunLockedError(
            f"another process is running into {shown(folder)}; wait for it, or choose another --out"
        )
    try:
        yield
    finally:
        held.release()


def _forget(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sweep(folder: Path) -> None:
    """Delete half-written files of a process that was killed."""
    for path in folder.rglob(".*"):
        if _TORN.fullmatch(path.name) and path.is_file():
            path.unlink()


def _existing(bench: Workbench) -> Finished | None:
    """The run, if it ended before, its files are whole and the data are the same.

    Where the data are not at hand any more, the record stands.
    """
    folder, plan = bench.folder, bench.plan
    path = folder / "record.json"
    if not path.exists():
        return None
    try:
        record = read_record(path)
        if record.status != "complete" or record.run_id != plan.run_id():
            return None
        assert record.data is not None
        assert record.distilled is not None
        kept = (*KEPT, WITNESSES) if bench.witnesses else KEPT
        if not all((folder / name).is_file() for name in kept) or not receipts_hold(folder):
            return None
        if DistilledSet.load(bench.set_path).sha256() != record.distilled.sha256:
            return None
    except UsageError:
        return None
    with contextlib.suppress(RobustDDError):
        if bench.data_hashes != (record.data.train_sha256, record.data.evaluation_sha256):
            return None
    shutil.rmtree(folder / "work", ignore_errors=True)
    return Finished(record, folder, reused=True)


def _started(folder: Path, plan: Plan) -> datetime.datetime:
    """Write the plan on the first start; tell when that was."""
    path = folder / "plan.json"
    if path.exists():
        with contextlib.suppress(UsageError, KeyError, TypeError, ValueError):
            return datetime.datetime.fromisoformat(read_json(path)["started"])
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    write_json(path, {"plan": plan.to_dict(), "started": now.isoformat()})
    return now


def _kept(bench: Workbench, position: Position) -> str:
    """What an interrupted run keeps, and how to go on."""
    parts = []
    for stage, cells in position.cells.items():
        done = sum(cell.done() for cell in cells)
        if done:
            parts.append(f"{stage} {done}/{len(cells)}")
    work = bench.folder / "work"
    if position.stage == "distill" and work.is_dir() and any(work.iterdir()):
        parts.append("a checkpoint of the distillation")
    kept = ", ".join(parts) if parts else "nothing yet"
    return (
        f"interrupted; kept in {shown(bench.folder)}: {kept}. Run the same command again to go on."
    )
