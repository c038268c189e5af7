"""The runs under an output folder: what became of each, and its figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from robustdd_bench.errors import UsageError
from robustdd_bench.filenames import PLAN_FILE, RECORD_FILE
from robustdd_bench.files import parse_json
from robustdd_bench.records.plan import Plan
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.records.settings import differing_settings, setting_text
from robustdd_bench.runs.cleaning import is_locked, run_folders
from robustdd_bench.strict import read_bounded

MAX_PLAN = 4 * 2**20

Status = Literal["complete", "failed", "running", "interrupted"]


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run that lies under an output folder."""

    folder: Path
    status: Status
    plan: Plan
    record: Record | None
    """None of a run that has not ended."""
    settings: str
    """Those in which the runs of its method on its track differ."""

    def facts(self) -> dict[str, Any]:
        """What machines read of it; accuracies in [0,1]."""
        plan, record = self.plan, self.record
        aggregates = record.aggregates if record else None
        return {
            "run_id": self.folder.name,
            "status": self.status,
            "method": plan.method,
            "track": plan.track.name,
            "version": plan.track.version,
            "seed": plan.seed,
            "split": plan.split,
            "device": plan.device,
            "preset": plan.preset,
            "config": dict(plan.config),
            "differs": self.settings,
            "headline_eps": plan.track.threat.headline,
            "clean": aggregates.clean.mean if aggregates else None,
            "headline": aggregates.headline.mean if aggregates else None,
            "folder": str(self.folder),
        }


def list_runs(out: Path) -> tuple[list[FoundRun], list[str]]:
    """The runs under an output folder, by track, method, settings and seed.

    Args:
        out: the folder that `robustdd run --out` writes to, or a board's `results`.

    Returns:
        The runs, and a line for each folder whose plan or record cannot be read.

    Raises:
        UsageError: there is no such folder.
    """
    if not out.is_dir():
        raise UsageError(f"no runs there: {out} is not a folder; name it with --out")
    read: list[tuple[Path, Status, Plan, Record | None]] = []
    problems = []
    for folder in run_folders(out):
        try:
            read.append((folder, *_read(folder)))
        except UsageError as error:
            problems.append(f"{folder}: {error}")
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for _, _, plan, _ in read:
        groups[plan.track.id, plan.method].append(plan.config)
    found = []
    for folder, status, plan, record in read:
        names = differing_settings(groups[plan.track.id, plan.method])
        told = ", ".join(setting_text(name, plan.config.get(name)) for name in names)
        found.append(FoundRun(folder, status, plan, record, told))
    found.sort(key=lambda run: (run.plan.track.id, run.plan.method, run.settings, run.plan.seed))
    return found, problems


def _read(folder: Path) -> tuple[Status, Plan, Record | None]:
    record = read_record(folder / RECORD_FILE) if (folder / RECORD_FILE).exists() else None
    if record is not None:
        return record.status, record.plan(), record
    plan = read_plan(folder)
    assert plan is not None  # a run's folder has one of the two
    return "running" if is_locked(folder, unsure=False) else "interrupted", plan, None


def read_plan(folder: Path) -> Plan | None:
    """The plan that lies in a run's folder; None if there is none.

    Raises:
        UsageError: it is damaged, or of another version.
    """
    path = folder / PLAN_FILE
    if not path.exists():
        return None
    value = parse_json(read_bounded(path, "a plan", MAX_PLAN), path)
    try:
        plan = TypeAdapter(Plan).validate_python(value["plan"])
        plan.command()  # texts that no call can hold
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{path} is not a plan of this version of robustdd-bench") from error
    return plan
