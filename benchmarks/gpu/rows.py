"""Rows of the board on a GPU: runs by `robustdd run`, as many as a budget of seconds holds.

    python benchmarks/gpu/rows.py --out DIR --sweep benchmarks/gpu/board.toml --only mtt
    python benchmarks/gpu/rows.py --out DIR --method mat --track cifar10-ipc10 --preset minutes
    python benchmarks/gpu/rows.py --out DIR --from-archive EARLIER/rows.tar --sweep ...

Runs go one after the other into a folder of their own (`--work`). One is begun only if `--least`
seconds are left; the one that is going on at the end is interrupted as by Ctrl-C, and keeps what it
has. Whenever one ends, DIR gets rows.json, rows.log (what the runs said) and rows.tar (what they
left; see archive.py): with `--from-archive` the next call goes on from there, on a machine that has
never seen them. `--keep-experts` takes the stored experts along, which are large.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import chosen
from archive import NAME, choose, pack, unpack
from bench import Report, circumstances, parse, parser, write_report
from pydantic import BaseModel, ConfigDict

from robustdd_bench.errors import RobustDDError
from robustdd_bench.files import read_json
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.records.record import read_record
from robustdd_bench.results import summary
from robustdd_bench.sweeps.plan import SweepRun
from robustdd_bench.text.terminal import rate_text

PROGRAM = (sys.executable, "-m", "robustdd_bench")
GRACE_S = 15.0
"""Seconds of the budget in which an interrupted run may end and the rest is packed."""

Status = Literal["complete", "failed", "interrupted", "left out"]


class Row(BaseModel):
    """One run, and how far it came."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    run: str
    run_id: str
    command: str
    status: Status
    wall_s: float
    """Seconds of this call; those of all calls are with the stages of the result."""
    result: dict[str, Any] | None
    """What `robustdd run --json` says of it: accuracies, and time, throughput and peak memory of
    each stage. None without a record."""
    note: str
    """Why it failed, or how far it was."""


class Rows(Report):
    """The runs of a call."""

    budget_s: float
    spent_s: float
    rows: list[Row]
    packed: list[str]
    """Files in the archive."""
    not_packed: list[str]
    """Files for which there was no room in it."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run, and the words after `robustdd` that run it."""

    run: SweepRun
    words: tuple[str, ...]


def jobs(options: argparse.Namespace, registry: Registry) -> list[Job]:
    """The runs that are asked for, in order.

    Raises:
        UsageError: they cannot be planned.
    """
    where = ("--out", str(options.work), "--data-root", str(options.data_root))
    files = chosen.track_files(options)
    found = []
    for run in chosen.runs(options, registry, options.device):
        words = shlex.split(run.plan.command())[1:]
        at = words.index("--track") + 1
        if words[at].endswith(".toml"):
            words[at] = str(files[words[at]])
        found.append(Job(run, (*words, *where)))
    return found


class Call:
    """The runs of one call.

    Args:
        options: the parsed command line.
        jobs: what to run.
        began: when the call began, by the monotonic clock.
    """

    def __init__(self, options: argparse.Namespace, jobs: Sequence[Job], began: float) -> None:
        self.options = options
        self._jobs = jobs
        self._began = began
        self.rows = [self._row(job, "left out", 0.0, "") for job in jobs]

    def left_s(self) -> float:
        """Seconds until a run has to be interrupted."""
        budget: float = self.options.budget
        return budget - min(GRACE_S, budget / 10) - (time.monotonic() - self._began)

    def run(self) -> None:
        """Run what there is time for; files are written after each.

        Raises:
            KeyboardInterrupt: this call was interrupted; everything is written.
        """
        for index, job in enumerate(self._jobs):
            if job.run.found(self.options.work) == "there":
                self.rows[index] = self._row(job, "complete", 0.0, "was there")
            elif self.left_s() < self.options.least:
                self.rows[index] = self._row(job, "left out", 0.0, _how_far(self._folder(job)))
            else:
                print(f"{job.run}: begins", file=sys.stderr, flush=True)
                try:
                    self._run(index, job)
                finally:
                    self.save()
        self.save()

    def _run(self, index: int, job: Job) -> None:
        began = time.monotonic()
        log: Path = self.options.out / "rows.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        interruption: BaseException | None = None
        with log.open("a", encoding="utf-8") as said:
            print(f"\n$ robustdd {shlex.join(job.words)}", file=said, flush=True)
            start = said.tell()
            process = subprocess.Popen([*PROGRAM, *job.words], stdout=said, stderr=said)
            try:
                process.wait(max(self.left_s(), 0.0))
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
                interruption = error
                _end(process)
        last, status, note = _last_line(log, start), "failed", ""
        if process.returncode == 0:
            status = "complete"
        elif interruption is not None:
            status, note = "interrupted", f"{last} ({_how_far(self._folder(job))})"
        else:
            note = last
        wall_s = time.monotonic() - began
        self.rows[index] = self._row(job, status, wall_s, note)
        print(f"{job.run}: {status}, {wall_s:.0f} s. {note}", file=sys.stderr, flush=True)
        if isinstance(interruption, KeyboardInterrupt):
            raise interruption

    def _folder(self, job: Job) -> Path:
        folder: Path = job.run.plan.folder(self.options.work)
        return folder

    def _row(self, job: Job, status: str, wall_s: float, note: str) -> Row:
        result = None
        path = self._folder(job) / "record.json"
        if status != "left out" and path.is_file():
            with contextlib.suppress(RobustDDError):
                result = summary(read_record(path))
        return Row(
            run=str(job.run),
            run_id=job.run.run_id,
            command=job.run.plan.command(),
            status=cast(Status, status),
            wall_s=round(wall_s, 3),
            result=result,
            note=note,
        )

    def save(self) -> None:
        """Write rows.tar and rows.json."""
        options = self.options
        folders = list(dict.fromkeys(self._folder(job) for job in self._jobs))
        found = choose(
            options.work, folders, students=options.keep_students, experts=options.keep_experts
        )
        packed, dropped = pack(
            options.work,
            found,
            options.out,
            most_bytes=int(options.max_mib * 2**20),
            most_files=options.max_files,
        )
        asked = ["--budget", f"{options.budget:g}", *(["--tiny"] if options.tiny else [])]
        asked += chosen.words(options)
        report = Rows(
            **circumstances("rows", options, asked),
            budget_s=options.budget,
            spent_s=round(time.monotonic() - self._began, 3),
            rows=self.rows,
            packed=packed,
            not_packed=dropped,
        )
        write_report(options.out / "rows.json", report)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a run; kill it if it does not end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)  # a terminal's Ctrl-C has reached it as well
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _how_far(folder: Path) -> str:
    """The last values that a run has written, in a few words."""
    try:
        last = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        values = json.loads(last)
        return f"at step {values['step']} of {values['stage']}"
    except (OSError, LookupError, TypeError, ValueError):
        return "no step written" if folder.exists() else ""


def table(rows: Sequence[Row]) -> str:
    """The rows as text: accuracies in %, seconds of each stage over all calls, and notes."""
    lines = []
    for row in rows:
        lines.append(f"{row.run}  [{row.run_id}]  {row.status}, {row.wall_s:.0f} s in this call")
        found = row.result or {}
        if found.get("clean"):
            levels = [("clean", found["clean"])]
            levels += [(eps_label(level["eps"]), level) for level in found["robust"]]
            lines.append("  " + ", ".join(f"{name} {100 * x['mean']:.1f}" for name, x in levels))
        for stage in found.get("stages", ()):
            rate = rate_text(stage["items_per_s"], stage["unit"])
            peak = f"{stage['peak_bytes'] / 2**20:,.0f} MiB"
            lines.append(f"  {stage['stage']:9} {stage['wall_s']:8.1f} s {rate:>22} {peak:>12}")
        if found.get("failed_checks"):
            lines.append(f"  failed checks: {', '.join(found['failed_checks'])}")
        if row.note:
            lines.append(f"  {row.note}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, pack, print; 1 if a run failed, 130 if the call was interrupted."""
    began = time.monotonic()
    made = parser(__doc__)
    chosen.add_options(made)
    made.add_argument("--work", type=Path, default=Path("runs/rows"), help="folder of the runs")
    made.add_argument("--least", type=float, default=60, help="seconds without which none begins")
    made.add_argument("--keep-experts", action="store_true", help="archive the stored experts")
    made.add_argument("--keep-students", action="store_true", help="archive students' weights")
    made.add_argument("--from-archive", type=Path, metavar="FILE", help="rows.tar of a call before")
    made.add_argument("--max-mib", type=float, default=15, help="size of a file of the archive")
    made.add_argument("--max-files", type=int, default=6, help="files of the archive at most")
    options = parse(made, arguments)
    chosen.check(made, options)
    # Whoever started this may ignore SIGINT, which the runs would inherit; SIGTERM ends it as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        if options.from_archive is not None:
            print(f"{unpack(options.from_archive, options.work)} files unpacked", file=sys.stderr)
        call = Call(options, jobs(options, collect(get_plugin_manager())), began)
    except (RobustDDError, OSError, tarfile.TarError) as error:
        made.error(str(error))
    code = 0
    try:
        call.run()
    except KeyboardInterrupt:
        code = 130
    print(table(call.rows))
    report = read_json(options.out / "rows.json")
    print(f"{len(report['packed'])} files in {options.out / NAME}")
    if report["not_packed"]:
        print(f"no room for: {', '.join(report['not_packed'])}")
    return code or int(any(row.status == "failed" for row in call.rows))


if __name__ == "__main__":
    sys.exit(main())
