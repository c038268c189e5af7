"""A run from plan to record: stages in order, each skipped where its result is there.

A run may be killed at any moment. Every cell's output is whole or absent, methods checkpoint their
loops, and nothing in the result depends on where the run was cut: started again, it ends in the
record that an unbroken run writes, costs apart.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import torch

from robustdd_bench.errors import RobustDDError, RunFailedError, UsageError
from robustdd_bench.evaluation.robustness import pack_bits
from robustdd_bench.files import read_json, write_json
from robustdd_bench.plugins import Registry
from robustdd_bench.runs.cells import (
    STAGES,
    Cell,
    Workbench,
    read_outcomes,
    run_cell,
    student_facts,
)
from robustdd_bench.runs.environment import environment, source_commit
from robustdd_bench.runs.executors import Executor
from robustdd_bench.runs.figures import save_distilled, save_robustness
from robustdd_bench.runs.plan import Plan
from robustdd_bench.runs.records import (
    AttackInfo,
    AttackResult,
    Commit,
    Costs,
    DataInfo,
    Failure,
    Flag,
    MethodInfo,
    Record,
    SetInfo,
    StageTime,
    StudentResult,
    aggregate_students,
    make_record,
    read_record,
    write_record,
)
from robustdd_bench.runs.reporter import RunReporter

KEPT = ("record.json", "distilled.safetensors", "distilled.png", "robustness.png")


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that ended: its record, its folder, and whether it had been there already."""

    record: Record
    folder: Path
    reused: bool


ReporterFactory = Callable[[Path], contextlib.AbstractContextManager[RunReporter]]


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

    Raises:
        UsageError: the call cannot work, or another process is running the same plan.
        RunFailedError, PluginError: the run failed; a failed record has been written.
        KeyboardInterrupt: interrupted; the text says what is kept and how to go on.
    """
    folder = plan.folder(out)
    with _locked(folder), _threads(plan.threads):
        if fresh:
            _forget(folder)
        finished = _existing(folder, plan)
        if finished is not None:
            return finished
        started = _started(folder, plan)
        bench = Workbench(plan, registry, out, data_root, download=download)
        with reporter(folder) as progress:
            cell: Cell | None = None
            try:
                _ = bench.train, bench.evaluation  # a missing dataset is told before any work
                _ = bench.distiller, bench.task.network(0)  # so is a network that does not fit

                def run(one: Cell) -> None:
                    nonlocal cell
                    cell = one
                    run_cell(bench, one, progress)

                for stage in STAGES:
                    cells = bench.cells(stage)
                    todo = [one for one in cells if not one.done()]
                    if todo:
                        with progress.stage(stage, len(cells), len(cells) - len(todo)) as step:

                            def counted(one: Cell, step: Callable[[], None] = step) -> None:
                                run(one)
                                step()

                            executor.run(todo, counted)
                record = assemble(bench, started)
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(_kept(bench)) from interrupt
            except UsageError:
                raise
            except RobustDDError as error:
                record = _failed(bench, started, cell, error)
                write_record(folder / "record.json", record)
                raise
            except torch.OutOfMemoryError as error:
                failure = RunFailedError(
                    f"out of memory in {cell.name if cell else 'the set-up'}: use a smaller batch"
                )
                write_record(folder / "record.json", _failed(bench, started, cell, failure))
                raise failure from error
            save_distilled(folder / "distilled.png", bench.distilled(), bench.num_classes)
            assert record.aggregates is not None
            save_robustness(
                folder / "robustness.png",
                record.aggregates,
                plan.track,
                f"{plan.method} on {plan.track.name} ({plan.split} split, seed {plan.seed})",
            )
            write_record(folder / "record.json", record)
    return Finished(record, folder, reused=False)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets it go when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror or error}; see --out") from error
    logging.getLogger("filelock").setLevel(logging.WARNING)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(
            f"another process is running into {folder}; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}; see --out") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _forget(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == ".lock":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _existing(folder: Path, plan: Plan) -> Finished | None:
    """The run, if it ended before and its record is whole."""
    path = folder / "record.json"
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except UsageError:
        return None
    whole = all((folder / name).exists() for name in KEPT)
    if record.status != "complete" or record.run_id != plan.run_id() or not whole:
        return None
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


def _kept(bench: Workbench) -> str:
    """What an interrupted run keeps, and how to go on."""
    parts = []
    with contextlib.suppress(RobustDDError):
        for stage in STAGES:
            cells = bench.cells(stage)
            done = sum(cell.done() for cell in cells)
            if cells and done:
                parts.append(f"{stage} {done}/{len(cells)}")
    work = bench.folder / "work"
    if work.is_dir() and any(work.iterdir()) and not bench.set_path.exists():
        parts.append("a checkpoint of the distillation")
    kept = ", ".join(parts) if parts else "nothing yet"
    return f"interrupted; kept in {bench.folder}: {kept}. Run the same command again to go on."


def _stage_times(bench: Workbench) -> tuple[StageTime, ...]:
    """Costs by stage, from the receipts of its cells."""
    times = []
    for stage in STAGES:
        receipts = [read_json(cell.receipt) for cell in bench.cells(stage) if cell.done()]
        if receipts:
            wall = sum(r["wall_s"] for r in receipts)
            items = sum(r["items"] for r in receipts)
            times.append(
                StageTime(
                    stage=stage,
                    cells=len(receipts),
                    wall_s=round(wall, 3),
                    items=items,
                    unit=receipts[0]["unit"],
                    items_per_s=round(items / wall, 3) if wall > 0 else 0.0,
                    peak_bytes=max(r["peak_bytes"] for r in receipts),
                )
            )
    return tuple(times)


def _common(bench: Workbench, started: datetime.datetime) -> dict[str, object]:
    """What complete and failed records share."""
    plan = bench.plan
    commit = source_commit()
    return {
        "schema_version": 1,
        "run_id": plan.run_id(),
        "split": plan.split,
        "track": plan.track,
        "track_sha256": plan.track.sha256(),
        "method": MethodInfo(
            name=plan.method,
            plugin=plan.plugin,
            distribution=plan.distribution,
            version=plan.version,
            preset=plan.preset,
            config=dict(plan.config),
            reference=bench.reference,
        ),
        "attacks": tuple(
            AttackInfo(name=a.name, plugin=a.plugin, version=a.version, config=dict(a.config))
            for a in plan.attacks
        ),
        "seed": plan.seed,
        "device": plan.device,
        "threads": plan.threads,
        "torch": plan.torch,
        "harness": plan.harness,
        "command": plan.command(),
        "costs": Costs(
            started=started,
            finished=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
            stages=_stage_times(bench),
            environment=environment(),
            commit=None if commit is None else Commit(**commit),
        ),
    }


def _failed(
    bench: Workbench, started: datetime.datetime, cell: Cell | None, error: RobustDDError
) -> Record:
    return make_record(
        **_common(bench, started),
        status="failed",
        data=None,
        distilled=None,
        students=(),
        aggregates=None,
        flags=(),
        failure=Failure(
            stage=cell.stage if cell else "set-up",
            cell=cell.name if cell else "set-up",
            error=type(error).__name__,
            reason=str(error),
        ),
    )


def assemble(bench: Workbench, started: datetime.datetime) -> Record:
    """The record of a run whose cells are all done, from their files."""
    plan, track = bench.plan, bench.plan.track
    students = []
    flags: list[Flag] = []
    for index in range(track.students.count):
        results = [
            AttackResult(
                attack=found.attack,
                eps=found.threat.eps,
                seed=found.seed,
                robust=pack_bits(found.robust),
                broken=found.broken,
                violations=found.violations.examples,
                forwards=found.forwards,
                batch_size=found.batch_size,
                verify_batch_size=found.verify_batch_size,
            )
            for attack in plan.attacks
            for found in read_outcomes(bench, attack.name, index)
        ]
        students.append(StudentResult(**student_facts(bench, index), attacks=tuple(results)))
        flags += [
            Flag(student=index, **check)
            for check in read_json(bench.folder / "cells" / f"sanity-{index}.json")
        ]
    return make_record(
        **_common(bench, started),
        status="complete",
        data=_data_info(bench),
        distilled=_set_info(bench),
        students=tuple(students),
        aggregates=aggregate_students(students, track),
        flags=tuple(flags),
        failure=None,
    )


def _data_info(bench: Workbench) -> DataInfo:
    train, evaluation = bench.data_hashes
    channels, height, width = bench.shape_CHW
    return DataInfo(
        dataset=bench.plan.track.data.dataset,
        num_classes=bench.num_classes,
        shape=(channels, height, width),
        train_examples=len(bench.train),
        train_sha256=train,
        evaluation_examples=len(bench.evaluation),
        evaluation_sha256=evaluation,
    )


def _set_info(bench: Workbench) -> SetInfo:
    distilled = bench.distilled()
    labels = distilled.labels.argmax(1) if distilled.soft_labels else distilled.labels
    counts = torch.bincount(labels, minlength=bench.num_classes).tolist()
    return SetInfo(
        sha256=distilled.sha256(),
        images=len(distilled),
        images_per_class=tuple(counts),
        labels="soft" if distilled.soft_labels else "hard",
        learning_rate=distilled.learning_rate,
        augmentation=distilled.augmentation,
        preprocessing=None if distilled.preprocessing is None else asdict(distilled.preprocessing),
        pixel_min=float(distilled.images.min()),
        pixel_max=float(distilled.images.max()),
        provenance=dict(distilled.provenance),
    )
