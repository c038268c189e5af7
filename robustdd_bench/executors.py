"""Executors: where the cells of runs are computed. All that the author of one reads.

A run is five kinds of cells: experts, the distillation, students, attacks, sanity checks. A cell is
a function of the plan, of the data and of files that earlier cells wrote. Its output is one file,
and beside it stands a receipt `<file>.cell.json`: which cell of which run it is for, the hash of
the output, the hash of everything the cell read, what it cost, and what process did it. A cell
whose receipt still holds is never computed again.

The pipeline submits every cell whose inputs have receipts, and waits for futures:

    class Mine(Executor):
        slots = 8

        def submit(self, cell, job):
            return self.pool.submit(work, json.dumps(job.message), cell.name, ...)

The other end is a process that sees the same folders. It lives as long as it can, so that data are
loaded once (`robustdd_bench.runs.execution.worker`):

    worker = Worker(message, registry)
    receipt = worker.run(cell_name, events)   # `events` is called with JSON values: job.events

Order, failures, retries, cancelling, receipts and the display are the pipeline's, for all executors
alike. The result never depends on the executor.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from robustdd_bench.errors import PluginError, RobustDDError, RunFailedError, UsageError
from robustdd_bench.files import file_sha256, write_json
from robustdd_bench.strict import StrictModel

__all__ = [
    "STAGES",
    "Cell",
    "CellFailedError",
    "Commit",
    "Executor",
    "ExecutorEndedError",
    "Job",
    "LocalExecutor",
    "Process",
    "Receipt",
    "Resources",
    "ReturnedCellError",
]

STAGES = ("experts", "distill", "students", "attacks", "sanity")
"""The kinds of cells, in the order in which they are told to people."""
RECEIPT = ".cell.json"
Events = Callable[[Mapping[str, Any]], None]
"""Takes an event of a cell, JSON values: metrics, a line for the log, a picture, progress."""


class Commit(StrictModel):
    """The code's commit."""

    sha: str
    dirty: bool


class Process(StrictModel):
    """The process that did some work: which code, on which torch and machine."""

    harness: str
    torch: str
    commit: Commit | None
    """Of the code that runs; none where it is not a checkout."""
    host: str = Field(pattern=r"^[0-9a-f]{12}$")
    """A hash that tells machines apart and names none."""
    device: str
    """The processor or accelerator, as it calls itself."""


class Receipt(BaseModel):
    """What is known of a cell that was done."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cell: str
    bound: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Hash of what the cell is and of the run or store it is for; none of older versions."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the output."""
    inputs_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of everything that was read."""
    wall_s: float = Field(ge=0)
    peak_bytes: int = Field(ge=0)
    items: int = Field(ge=0)
    unit: str
    process: Process | None = None
    """What did the work; none of older versions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a cell takes."""

    gpus: int = 0
    threads: int = 1
    """CPU threads. They decide the last bits, so an executor gives neither more nor fewer."""
    memory_bytes: int | None = None
    """Peak, as cells like it had it; None where none has run."""
    seconds: float | None = None
    """As cells like it took; None where none has run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One unit of work."""

    stage: str
    """One of `STAGES`."""
    name: str
    """Unique within the run, e.g. "attacks/3/pgd" or, of students 0 to 4, "attacks/0-4/pgd"."""
    output: Path
    inputs: tuple[Path, ...] = ()
    """Files of earlier cells that it reads."""
    data: tuple[str, ...] = ()
    """Hashes of the data it reads."""
    students: tuple[int, ...] = ()
    attack: str | None = None
    beside: tuple[Path, ...] = ()
    """Further files that it writes, which no later cell reads."""
    scope: str = ""
    """Whose it is: the id of the run, or the place in the store that runs share."""
    resources: Resources = field(default_factory=Resources, compare=False)

    @property
    def bound(self) -> str:
        """What a receipt has to be for: a hash of this cell, other than that of any other."""
        what = [self.scope, self.stage, self.name, self.output.name, self.students, self.attack]
        return hashlib.sha256(json.dumps(what, separators=(",", ":")).encode()).hexdigest()

    @property
    def receipt_path(self) -> Path:
        """Where the receipt lies."""
        return self.output.with_name(self.output.name + RECEIPT)

    def receipt(self) -> Receipt | None:
        """The receipt, if the output is whole and was made of what is there now; else None."""
        found = read_receipt(self.receipt_path)
        try:
            if found is None or found.cell != self.name or found.bound not in (None, self.bound):
                return None
            if current_sha256(self.output) != found.sha256:
                return None
            if not all(path.is_file() for path in self.beside):
                return None
            return found if self.inputs_sha256() == found.inputs_sha256 else None
        except OSError:
            return None

    def done(self) -> bool:
        """Whether the cell need not be run."""
        return self.receipt() is not None

    def inputs_sha256(self) -> str:
        """Hash of everything the cell reads.

        Raises:
            OSError: an input is not there.
        """
        files = [(path.name, current_sha256(path)) for path in self.inputs]
        text = json.dumps([files, self.data], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def sign(
        self, *, wall_s: float, peak_bytes: int, items: int, unit: str, process: Process
    ) -> Receipt:
        """Write the receipt: the output is there and whole.

        Args:
            wall_s: seconds that it took.
            peak_bytes: memory that it took.
            items: what was worked through.
            unit: of the items.
            process: what did the work.
        """
        receipt = Receipt(
            cell=self.name,
            bound=self.bound,
            sha256=current_sha256(self.output),
            inputs_sha256=self.inputs_sha256(),
            wall_s=round(wall_s, 6),
            peak_bytes=peak_bytes,
            items=items,
            unit=unit,
            process=process,
        )
        write_json(self.receipt_path, receipt.model_dump(mode="json"))
        return receipt


def read_receipt(path: Path) -> Receipt | None:
    """The receipt in a file; None if it is missing or damaged."""
    try:
        return Receipt.model_validate_json(path.read_bytes(), strict=True)
    except (OSError, ValueError):
        return None


def receipts_hold(folder: Path) -> bool:
    """Whether every output under a folder is still what its receipt says."""
    for path in folder.rglob(f"*{RECEIPT}"):
        receipt = read_receipt(path)
        output = path.with_name(path.name.removesuffix(RECEIPT))
        try:
            if receipt is None or current_sha256(output) != receipt.sha256:
                return False
        except OSError:
            return False
    return True


def current_sha256(path: Path) -> str:
    """Hash of a file; one that has not been touched since is not read again."""
    about = path.stat()
    return _sha256_of(path, about.st_ino, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256_of(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


_KINDS = {kind.__name__: kind for kind in (UsageError, PluginError, RunFailedError, RobustDDError)}


class CellFailedError(Exception):
    """What a cell raised where it was computed. It would raise it again, so it is not retried.

    Args:
        kind: name of the error's class in `robustdd_bench.errors`.
        text: one line for the user.
        trace: the traceback there, for the run's log.
    """

    def __init__(self, kind: str, text: str, trace: str = "") -> None:
        super().__init__(kind, text, trace)
        self.kind, self.text, self.trace = kind, text, trace

    def __str__(self) -> str:
        return self.text

    def error(self) -> RobustDDError:
        """The error, as it would have been raised here."""
        error = _KINDS.get(self.kind, RunFailedError)(self.text)
        if self.trace:
            error.add_note(self.trace)
        return error


class ReturnedCellError(Exception):
    """A worker gave a cell back before its end, as when its own time is up: nothing is wrong.

    The cell is submitted again, and that does not count as the loss of a worker.
    """


class ExecutorEndedError(RobustDDError):
    """The executor can compute nothing any more, for no fault of a cell: its cluster is gone, say.

    It ends the call as an interruption does: no run has failed, and the same command resumes.

    Args:
        text: one line for the user.
        exit_code: 2 where the call was wrong, as an address that nobody answers at.
    """

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code

    def with_more(self, text: str) -> ExecutorEndedError:
        """The same, saying what is kept where the call was not wrong."""
        more = "" if self.exit_code == UsageError.exit_code else f"; {text}"
        return ExecutorEndedError(f"{self}{more}", self.exit_code)


def _no_data(path: Path) -> None:
    raise RunFailedError("this run has no data to hand on")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The run that a cell is of, as an executor needs it."""

    run_id: str
    message: Mapping[str, Any]
    """JSON values that tell a worker which run this is, where its folders are and which harness,
    plugins and torch planned it: a worker that differs refuses."""
    events: Callable[[Cell, Mapping[str, Any]], None]
    """Takes the events of a cell, in the order in which they came; from any thread."""
    run_here: Callable[[Cell], Receipt]
    """Computes a cell in this process and thread; raises what the cell raises."""
    write_data: Callable[[Path], None] = _no_data
    """Writes the run's data into a file, which a worker that lacks them reads (`data_file` in the
    message); from any thread."""


class Executor(abc.ABC):
    """Computes cells.

    It is a context manager: entered before the first cell is submitted, left when all have ended
    or, with the exception, when the run is interrupted. Then it stops what still runs.

    Args:
        config: its options.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options, set by `--executor-set KEY=VALUE`; see `robustdd_bench.config`."""

    slots: int = 1
    """How many cells it computes at once: as many are submitted."""
    elsewhere: bool = False
    """Whether other machines compute: runs for GPUs can then be planned where there is none."""
    asks: bool = False
    """Whether it may ask something on the terminal when it is left by Ctrl-C."""

    def __init__(self, config: Any = None) -> None:
        self.config = type(self).Config() if config is None else config

    def __enter__(self) -> Self:
        """Connect, start workers."""
        return self

    def begin(self, job: Job) -> None:
        """Hear of a run before its first cell, also of one of which no cell is left.

        An executor whose workers outlive the call hands on here what they have told meanwhile.
        """
        return

    @abc.abstractmethod
    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        """Begin to compute a cell, whose inputs are there.

        Returns:
            A future of the receipt, which lies beside the output as well. Its exception may be a
            `CellFailedError` or a `RobustDDError`, which are the run's end (an
            `ExecutorEndedError` is that of the call); a `ReturnedCellError`; or any other: the
            worker was lost, and the cell is submitted again, at most twice.
        """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go; with an exception: stop at once what still runs."""
        return


class LocalExecutor(Executor):
    """One cell after the other, in this process."""

    def submit(self, cell: Cell, job: Job) -> Future[Receipt]:
        """Compute the cell; the future is done."""
        future: Future[Receipt] = Future()
        try:
            future.set_result(job.run_here(cell))
        except Exception as error:
            future.set_exception(error)
        return future
