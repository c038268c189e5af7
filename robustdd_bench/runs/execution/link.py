"""The line between a process and one that it has started: JSON, a value a line.

`LinkedProcess` is the end of the process that starts the other one, `Link` the end of that one.
Neither imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from robustdd_bench.errors import RunFailedError
from robustdd_bench.executors import Cell, CellFailedError, Job, Receipt

VISIBLE = "CUDA_VISIBLE_DEVICES"
GRACE_S = 5.0
"""Seconds in which an interrupted cell may end by itself."""
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]) or sys.path; "
    "from {module} import main; sys.exit(main())"
)
"""What a process is started with; see `LinkedProcess`."""
WORKER = "robustdd_bench.runs.execution.worker"


class LostWorkerError(Exception):
    """A process ended in the middle of a cell."""


class LinkedProcess:
    """A process of this program, and the line to it.

    Args:
        module: its function `main` is the process.
        environment: variables; None: those of this process.
        path: where it finds modules; none: where an interpreter of its own does.
        stderr: where it writes to; None: where this process does.
    """

    def __init__(
        self,
        module: str,
        environment: Mapping[str, str] | None = None,
        path: Sequence[str] = (),
        stderr: IO[bytes] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START.format(module=module), json.dumps(list(path))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            # A terminal's Ctrl-C is for the process that plans. A session of its own would take it
            # out of the share of processor time that Linux gives to the call, and `nice` with it.
            process_group=0 if os.name == "posix" else None,
        )
        self.pid = self._process.pid
        self._sending = threading.Lock()

    def send(self, value: Mapping[str, Any]) -> None:
        """Send a value.

        Raises:
            OSError, ValueError: the process has ended.
        """
        assert self._process.stdin is not None
        with self._sending:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()

    def values(self) -> Iterator[dict[str, Any]]:
        """What it sends, until it closes the line.

        Raises:
            OSError, ValueError: it ended in the middle of a line.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)

    def how(self) -> str:
        """How it ended, in a few words."""
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return f"{name} (where memory is short, the system kills)" if code == -9 else name
        return f"signal {-code}"

    def interrupt(self) -> None:
        """Interrupt what it does, as Ctrl-C does."""
        with contextlib.suppress(OSError, ValueError):  # it has ended; Windows has no such signal
            self._process.send_signal(signal.SIGINT)

    def end(self, until: float) -> None:
        """Let the process end, and see to it.

        Args:
            until: when it is killed, by the monotonic clock.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Let go of what a process that has ended has left."""
        assert self._process.stdout is not None
        self._process.stdout.close()


class WorkerProcess(LinkedProcess):
    """A process that computes cells: `robustdd_bench.runs.execution.worker.main`.

    Args:
        gpu: the CUDA device that it sees; None: those of the environment.
        environment: see `LinkedProcess`.
        path: see `LinkedProcess`.
    """

    def __init__(
        self,
        gpu: str | None = None,
        environment: Mapping[str, str] | None = None,
        path: Sequence[str] = (),
    ) -> None:
        variables = dict(os.environ if environment is None else environment)
        if gpu is not None:
            variables[VISIBLE] = gpu
        super().__init__(WORKER, variables, path)
        self.busy = False

    def ask(
        self, request: Mapping[str, Any], events: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Args:
            request: {"message", "cell"}, or {"fingerprint": true}.
            events: takes what the cell tells meanwhile.

        Returns:
            {"receipt"}, {"failed"} or {"fingerprint"}.

        Raises:
            LostWorkerError: the process ended.
        """
        self.busy = True
        try:
            self.send(request)
            for answer in self.values():
                if "event" not in answer:
                    return answer
                events(answer["event"])
        except (OSError, ValueError) as error:  # a line that was cut off
            raise LostWorkerError(f"its process ended: {self.how()} ({error})") from error
        finally:
            self.busy = False
        raise LostWorkerError(f"its process ended: {self.how()}")

    def fingerprint(self) -> dict[str, str]:
        """What is installed there; see `robustdd_bench.runs.execution.fingerprint`.

        Raises:
            LostWorkerError: the process ended.
            RunFailedError: it cannot tell.
        """
        answer = self.ask({"fingerprint": True}, lambda event: None)
        if "fingerprint" not in answer:
            raise RunFailedError(str(answer))
        found: dict[str, str] = answer["fingerprint"]
        return found

    def compute(self, cell: Cell, job: Job) -> Receipt:
        """Compute a cell.

        Raises:
            CellFailedError: it failed there.
            LostWorkerError: the process ended.
        """
        request = {"message": job.message, "cell": cell.name}
        answer = self.ask(request, lambda event: job.events(cell, event))
        return receipt_in(answer)


def receipt_in(answer: Mapping[str, Any]) -> Receipt:
    """The receipt in the answer of a worker.

    Raises:
        CellFailedError: the cell failed.
        LostWorkerError: it is no answer.
    """
    if "failed" in answer:
        raise CellFailedError(**answer["failed"])
    try:
        return Receipt.model_validate_json(json.dumps(answer["receipt"]), strict=True)
    except (KeyError, ValueError) as error:
        raise LostWorkerError(f"its answer cannot be read: {error}") from error


class Link:
    """The line to the process that started this one; it takes stdin and stdout.

    Args:
        ended: called when that process has ended, in a thread of its own.
    """

    def __init__(self, ended: Callable[[], None] = lambda: None) -> None:
        self._lines: IO[bytes] = os.fdopen(os.dup(0), "rb")
        self._out: IO[bytes] = os.fdopen(os.dup(1), "wb")
        # What plugins print goes to stderr, and what they read is empty.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        try:
            os.dup2(2, 1)
        except OSError:  # stderr is closed
            os.dup2(nothing, 1)
        os.close(nothing)
        self._requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = ended
        self.busy = False
        """Whether something is computed that is for nobody when that process has ended."""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._lines:
            self._requests.put(json.loads(line))
        self._requests.put(None)
        if self.busy:
            os._exit(1)
        self._ended()

    def next(self) -> dict[str, Any] | None:
        """The next value; None where there will be none."""
        return self._requests.get()

    def send(self, **fields: Any) -> None:
        """Send a value; nobody who takes it: the end of this process."""
        try:
            with self._lock:
                self._out.write(json.dumps(fields).encode() + b"\n")
                self._out.flush()
        except OSError:
            os._exit(1)
