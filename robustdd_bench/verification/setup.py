"""What is verified: a stranger's record, with its distilled set in a run's context of one's own.

Of the record only its claims are taken. The protocol is that of the track installed here, the
attacks are those installed here, data and set are held against their hashes, and students are
trained here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from robustdd_bench import __version__
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.evaluation.sanity.student_checks import SUBSET
from robustdd_bench.executors import Cell, Executor, LocalExecutor
from robustdd_bench.filenames import RECORD_FILE
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.tracks import Track, load_track
from robustdd_bench.records.means import resolve_device, resolve_threads, torch_version
from robustdd_bench.records.parts import DataInfo
from robustdd_bench.records.plan import Plan, plan_attacks
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.records.set_info import set_info
from robustdd_bench.runs.assemble import data_info
from robustdd_bench.runs.cells import all_cells
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.pipeline import ReporterFactory, compute_cells
from robustdd_bench.runs.work import threads as torch_threads
from robustdd_bench.text.terminal import one_line
from robustdd_bench.toolkit.fast.compile import availability

MOST_NOTES = 8
"""Settings of one attack that are named; a stranger's record may hold any number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions:
    """Where and on how much a record is verified."""

    data_root: Path
    """Where datasets are looked for."""
    track: str | None = None
    """Name or file of the protocol; None: the installed track of the record's name."""
    device: str | None = None
    """"auto", "cpu" or "cuda"; None: the record's, or the CPU where there is no GPU."""
    threads: int | None = None
    """CPU threads; None: the record's."""
    students: int | None = None
    """Only so many students, from the first; None: all."""
    examples: int | None = None
    """Only so many images from the start of the split; None: all."""
    executor: Callable[[Plan], Executor] = lambda plan: LocalExecutor()
    """Makes what computes the cells of a plan."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """A record, and a context whose folder holds its set and nothing else of it."""

    record: Record
    folder: Path
    """Where the record was found."""
    context: RunContext
    executor: Executor
    reporter: ReporterFactory
    notes: tuple[str, ...]
    """What is other here than where the record was made."""
    faults: tuple[str, ...]
    """What the record says falsely of its data and its set."""

    @property
    def data(self) -> DataInfo:
        """What the record says of the data."""
        assert self.record.data is not None
        return self.record.data

    def run(self, *stages: str) -> None:
        """Run the cells of some stages.

        Raises:
            RunFailedError, PluginError: one failed.
            KeyboardInterrupt: interrupted; the text says that nothing is kept.
        """
        run_on(self.context, self.executor, self.reporter, all_cells(self.context, stages))


@contextlib.contextmanager
def set_up(
    source: Path, registry: Registry, options: VerifyOptions, reporter: ReporterFactory
) -> Iterator[Setup]:
    """Put the set of a record into a context, in a folder that is deleted afterwards.

    The method is not run, but for reference rows, whose set is the training split.

    Args:
        source: the folder of a run, published or not, or the path of its record.
        registry: the installed plugins.
        options: where and on how much it is verified.
        reporter: makes the reporter for a folder.

    Raises:
        UsageError: files are missing or damaged, the record did not end, its protocol is another
            than the installed one, its data or its set are others, or an option is out of range.
        RunFailedError: the set is not one that the track allows.
    """
    record, folder = _read(source)
    assert record.data is not None
    students, examples = _part(record, options)
    track = _protocol(record, registry, options.track)
    plan = _plan(record, registry, track, options)
    with _temporary() as out, torch_threads(plan.threads):
        context = RunContext(
            plan, registry, out, options.data_root, students=students, examples=examples
        )
        if context.data_hashes != (record.data.train_sha256, record.data.evaluation_sha256):
            raise UsageError(f"the data under {options.data_root} are not those of the record")
        executor = options.executor(plan)
        _place_set(context, record, folder, executor, reporter)
        yield Setup(
            record=record,
            folder=folder,
            context=context,
            executor=executor,
            reporter=reporter,
            notes=tuple(_notes(record, plan)),
            faults=tuple(_faults(record, context)),
        )


def _read(source: Path) -> tuple[Record, Path]:
    path = source / RECORD_FILE if source.is_dir() else source
    record = read_record(path)
    if record.status != "complete":
        raise UsageError(f"{source} did not end; there is nothing to verify")
    return record, path.parent


def _part(record: Record, options: VerifyOptions) -> tuple[int | None, int | None]:
    """How many students and examples are judged; None: all."""
    assert record.data is not None
    count, size = record.track.students.count, record.data.evaluation_examples
    if options.students is not None and not 1 <= options.students <= count:
        raise UsageError(f"--students must lie in 1..{count}, not {options.students}")
    least = min(SUBSET, size)
    if options.examples is not None and not least <= options.examples <= size:
        raise UsageError(
            f"--examples must lie in {least}..{size}, not {options.examples} (the sanity checks "
            f"look at the first {least})"
        )
    examples = None if options.examples == size else options.examples
    return (None if options.students == count else options.students), examples


def _protocol(record: Record, registry: Registry, name: str | None) -> Track:
    """The protocol to hold a record to: never the one it brings along."""
    wanted = record.track
    try:
        track = load_track(name or wanted.name, registry)
    except UsageError as error:
        raise UsageError(
            f"the protocol of the record, track {wanted.id}, is not at hand ({error}); name it "
            "with --track"
        ) from error
    if track.id != wanted.id:
        raise UsageError(f"the record is of track {wanted.id}; here is {track.id}")
    if track.sha256() != record.track_sha256:
        ours, theirs = track.model_dump(mode="json"), wanted.model_dump(mode="json")
        keys = sorted(key for key in ours.keys() | theirs if ours.get(key) != theirs.get(key))
        raise UsageError(
            f"the protocol in the record is not that of track {track.id}: {', '.join(keys)} differ"
        )
    return track


def _plan(record: Record, registry: Registry, track: Track, options: VerifyOptions) -> Plan:
    """The record's plan, as far as evaluation goes, with what is installed here."""
    for spec in (track.network, *([track.student_network] if track.student_network else [])):
        registry.get("networks", spec.name)
    count = record.threads if options.threads is None else options.threads
    try:
        count = resolve_threads(count)
    except UsageError as error:
        hint = "" if options.threads is not None else "; the record's are too many for this machine"
        raise UsageError(f"{error}{hint}") from error
    device = options.device
    if device is None:
        device = "cpu" if record.device == "cpu" else "auto"
    return dataclasses.replace(
        record.plan(),
        track=track,
        attacks=plan_attacks(track, registry),
        device=resolve_device(device),
        threads=count,
        torch=torch_version(),
        harness=__version__,
    )


@contextlib.contextmanager
def _temporary() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="robustdd-verify.")
    except OSError as error:
        raise RunFailedError(f"cannot make a temporary folder: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def _place_set(
    context: RunContext, record: Record, folder: Path, executor: Executor, reporter: ReporterFactory
) -> None:
    assert record.distilled is not None
    source = folder / context.set_path.name
    if record.method.reference:
        if not context.reference:
            raise UsageError(
                f"the record says that method {record.method.name!r} is a reference; it is a "
                "method like others"
            )
        run_on(context, executor, reporter, all_cells(context, ("experts", "distill")))
    else:
        context.set_path.parent.mkdir(parents=True, exist_ok=True)
        DistilledSet.load(source).save(context.set_path)
    distilled = context.distilled()
    if distilled.sha256() != record.distilled.sha256:
        raise UsageError(f"the distilled set in {folder} is not that of the record")
    ipc = None if record.method.reference else context.plan.track.data.ipc
    try:
        distilled.check(context.shape_CHW, context.num_classes, ipc)
    except RunFailedError as error:
        raise RunFailedError(f"the set is not one that the track allows: {error}") from error


def _notes(record: Record, plan: Plan) -> Iterator[str]:
    """What is other here, and may change the outcome."""
    recorded = record.plan()
    for what in ("device", "threads", "torch", "harness"):
        here, there = getattr(plan, what), getattr(recorded, what)
        if here != there:
            yield one_line(f"{what} {here} here, {there} in the record")
    if plan.compile:
        found = availability(torch.device(plan.device))
        if not found.active:
            yield one_line(f"compiled kernels in the record and none here: {found.reason}")
    for here, there in zip(plan.attacks, record.attacks, strict=True):
        ours = {"plugin": here.plugin, "version": here.version, **here.config}
        theirs = {"plugin": there.plugin, "version": there.version, **there.config}
        keys = sorted(key for key in ours.keys() | theirs if ours.get(key) != theirs.get(key))
        for key in keys[:MOST_NOTES]:
            one, other = ours.get(key), theirs.get(key)
            yield one_line(f"attack {here.name}: {key} {one!r} here, {other!r} in the record")
        if len(keys) > MOST_NOTES:
            yield f"attack {here.name}: {len(keys) - MOST_NOTES} more settings differ"


def _faults(record: Record, context: RunContext) -> Iterator[str]:
    """What a record says of its data and its set that is not so."""
    for what, ours, theirs in (
        ("data", data_info(context), record.data),
        ("distilled", set_info(context.distilled(), context.num_classes), record.distilled),
    ):
        assert theirs is not None
        for key, value in ours.model_dump(mode="json", exclude={"provenance"}).items():
            said = theirs.model_dump(mode="json")[key]
            if said != value:
                yield one_line(f"{what}.{key}: the record says {said!r}, it is {value!r}", 300)


def run_on(
    context: RunContext,
    executor: Executor,
    reporter: ReporterFactory,
    cells: Sequence[Cell],
    note: str = "",
) -> None:
    """Compute some cells of a verification.

    Args:
        context: the run.
        executor: where.
        reporter: makes the reporter for its folder.
        cells: which.
        note: a line for the log before them.

    Raises:
        RunFailedError, PluginError: one failed.
        KeyboardInterrupt: interrupted; the text says that nothing is kept.
    """
    with reporter(context.folder) as progress:
        if note:
            progress.note(note)
        try:
            compute_cells(context, executor, progress, cells)
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(f"{interrupt}; a verification keeps nothing") from interrupt
