"""Files of sweeps on the track of tests/data/fast.toml, and sweeps of them."""

from __future__ import annotations

from pathlib import Path

import filelock
from commands import press_ctrl_c
from small_runs import MATCHING, TRACK, registry

from robustdd_bench.executors import LocalExecutor
from robustdd_bench.sweeps.plan import plan_sweep
from robustdd_bench.sweeps.run import run_sweep

MTT = "[settings.mtt]\n" + "\n".join(MATCHING) + "\n"


def write(folder: Path, text: str, *, tracks: str = f'tracks = "{TRACK}"\n') -> Path:
    path = folder / "sweep.toml"
    path.write_text(tracks + text)
    return path


def planned(folder: Path, text: str, **options):
    path = write(folder, text)
    return plan_sweep(path, registry(), **{"device": "cpu", "threads": 1} | options)


class Counting(LocalExecutor):
    """Counts the cells that it runs; after `last` of them comes Ctrl-C."""

    def __init__(self, last: int | None = None):
        self.cells: list[str] = []
        self.last = last

    def submit(self, cell, job):
        if len(self.cells) == self.last:
            press_ctrl_c()
        done = super().submit(cell, job)
        if done.exception() is None:
            plan = job.message["plan"]
            self.cells.append(f"{plan['method']}/{plan['seed']}/{cell.name}")
        return done


def swept(sweep, out: Path, executor=None, **options):
    return run_sweep(
        sweep,
        registry(),
        executor or LocalExecutor(),
        out=out,
        data_root=Path("nowhere"),
        **options,
    )


def statuses(result) -> list[str]:
    return [outcome.status for outcome in result.outcomes]


def no_pause(seconds: float) -> None:
    raise AssertionError(f"nothing has to be waited for, and {seconds} s were")


def held(folder: Path) -> filelock.FileLock:
    """A run's lock, held: the system does not care which process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    lock.acquire()
    return lock
