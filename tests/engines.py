"""One sweep for every engine, and what must be the same wherever its cells were computed."""

from __future__ import annotations

import re
from pathlib import Path

from small_runs import SETTINGS, TRACK, files, record_json

METHODS = ("mat", "mtt", "dm", "random")
SEEDS = (0, 1)
_TIME = re.compile(r"^\S+ |(,| after) [\d.]+ (ms|s|min|h)\b.*$")
_COSTLY = ("record.json", "plan.json", "run.log", ".cell.json", "metrics.jsonl", ".lock")


def sweep_file(folder: Path, methods=METHODS, seeds=SEEDS) -> Path:
    """A sweep of digits, seconds in all."""
    runs = []
    for method in methods:
        settings = ", ".join(text.replace("=", " = ") for text in SETTINGS.get(method, ()))
        runs.append(f'[[runs]]\nmethod = "{method}"\nset = {{ {settings} }}\n')
    path = folder / "engines.toml"
    head = f'name = "engines"\ntracks = ["{TRACK}"]\nseeds = {list(seeds)}\n'
    path.write_text("\n".join([head, *runs]), encoding="utf-8")
    return path


def arguments(sweep: Path, out: Path) -> list[str]:
    """What stands behind `robustdd` in a call, the executor apart."""
    return ["sweep", str(sweep), "--device", "cpu", "--threads", "1", "--out", str(out)]


def folders(out: Path) -> dict[str, Path]:
    """The folders of runs by their id."""
    return {path.parent.name: path.parent for path in out.glob("*/*/*/record.json")}


def assert_same_runs(ours: Path, theirs: Path) -> None:
    """Records (costs apart), sets, students, outcomes, values, logs and pictures are the same."""
    one, other = folders(ours), folders(theirs)
    assert one.keys() == other.keys()
    assert one, "no run ended"
    for run_id, folder in one.items():
        assert_same_run(folder, other[run_id])


def assert_same_run(ours: Path, theirs: Path) -> None:
    """See `assert_same_runs`."""
    records = [record_json(folder) for folder in (ours, theirs)]
    assert records[0]["status"] == "complete"
    assert records[0]["results_sha256"] == records[1]["results_sha256"]
    for record in records:
        del record["costs"]
    assert records[0] == records[1]
    one, other = files(ours), files(theirs)
    assert one.keys() == other.keys()
    for name in one:
        if not name.endswith(_COSTLY):
            assert one[name].read_bytes() == other[name].read_bytes(), name
    # Cells end in another order, so values and lines come in another one.
    assert values(ours) == values(theirs)
    assert log(ours) == log(theirs)


def values(folder: Path) -> list[str]:
    """The values that were logged, in no order."""
    return sorted((folder / "metrics.jsonl").read_text().splitlines())


def log(folder: Path) -> list[str]:
    """The lines of the log without times, in no order; those about lost cells apart."""
    lines = (folder / "run.log").read_text().splitlines()
    return sorted(_TIME.sub("", line) for line in lines if "it is computed again" not in line)
