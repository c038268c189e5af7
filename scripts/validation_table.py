"""A Markdown table of validation runs: what was tried in tuning, and what came of it.

    python scripts/validation_table.py FOLDER [FOLDER ...]

FOLDER is searched for `record.json`; runs on the test split are refused, since tuning must not see
them. Settings that all runs of a method share are left out of its rows.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def main(folders: list[str]) -> int:
    """Print the table; return the exit code."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        for path in sorted(Path(folder).rglob("record.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["split"] != "validation":
                print(f"error: {path} was not run with --validate", file=sys.stderr)
                return 2
            if record["status"] == "complete":
                runs[record["track"]["name"], record["method"]["name"]].append(record)
    if not runs:
        print("usage: validation_table.py FOLDER [FOLDER ...]; no run found", file=sys.stderr)
        return 2
    for (track, method), records in sorted(runs.items()):
        ladder = records[0]["track"]["threat"]["ladder"]
        print(f"\n### {method} on {track}\n")
        headings = ["settings", "seed", "clean", *(f"{eps:g}" for eps in ladder)]
        print(f"| {' | '.join(headings)} |\n|{' --- |' * len(headings)}")
        configs = [record["method"]["config"] for record in records]
        varied = [k for k in configs[0] if len({json.dumps(c.get(k)) for c in configs}) > 1]
        for record in sorted(records, key=lambda r: -r["aggregates"]["headline"]["mean"]):
            config, found = record["method"]["config"], record["aggregates"]
            settings = ", ".join(f"{key} {config[key]}" for key in varied) or "the preset"
            cells = [found["clean"], *(row["accuracy"] for row in found["robust"])]
            shown = [f"{100 * c['mean']:.1f} ± {100 * (c['std'] or 0):.1f}" for c in cells]
            print(f"| {settings} | {record['seed']} | {' | '.join(shown)} |")
        shared = {k: v for k, v in configs[0].items() if k not in varied}
        print(f"\nShared: {', '.join(f'{key} {value}' for key, value in shared.items())}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
