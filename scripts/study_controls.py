"""The study of what decides the gain of a distilled set: its rate, or the network it is trained on.

    python scripts/study_controls.py run --out DIR --data-root FOLDER [--jobs N]
    python scripts/study_controls.py write --out DIR
    python scripts/study_controls.py draw

`run` takes published sets of cifar10-small-ipc5, gives each the learning rate that a control asks
for, and evaluates them on the tracks docs/studies/cifar10-controls*.toml; what is there already is
not done again. `write` keeps figures and outcomes in docs/studies/cifar10-controls.json, and draws;
`draw` makes the tables of cifar10-controls.md from that file alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustdd_bench.board.kept import differences, keep
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.files import read_json, write_json, write_text
from robustdd_bench.protocol.tracks import eps_label
from robustdd_bench.records.record import read_record
from robustdd_bench.text.tables import markdown, marked

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "docs" / "studies" / "cifar10-controls.md"
RESULTS = STUDY.with_suffix(".json")
ROWS = ROOT / "leaderboard" / "results" / "cifar10-small-ipc5"

SETS = {
    "MAT": "mat/7d9e2d12a341",
    "MTT": "mtt/1d0838e6ce43",
    "MTT, MAT's rates": "mtt/0eda0ec32b6c",
    "random": "random/5af07e309733",
}
"""The sets, and the published runs that they are from."""
NETWORKS = {
    "ConvNet-3": "cifar10-controls",
    "ConvNet-3 without norm layers": "cifar10-controls-no-norm",
    "MLP": "cifar10-controls-mlp",
}
"""What students are, and the track that says so."""
OWN = "own"


@dataclass(frozen=True, slots=True)
class Control:
    """One evaluation."""

    set: str
    """One of `SETS`."""
    rate: str
    """The set whose learning rate students take; `OWN`: its own; a number: that."""
    network: str
    """One of `NETWORKS`."""

    @property
    def name(self) -> str:
        """A name for people, and for the file of the set."""
        return f"{self.set} at {self.rate} rate, {self.network}"


def controls() -> Iterator[Control]:
    """All of them, the most telling first."""
    first = "ConvNet-3"
    for name in SETS:
        yield Control(name, OWN, first)
    for name, other in (
        ("MTT", "MAT"),
        ("MAT", "MTT"),
        ("random", "MAT"),
        ("MTT, MAT's rates", "MAT"),
    ):
        yield Control(name, other, first)
    for network in list(NETWORKS)[1:]:
        for rate in (OWN, "0.01"):
            for name in ("MAT", "MTT, MAT's rates", "random"):
                if name != "random" or rate != OWN:  # its own is .01
                    yield Control(name, rate, network)


def source(name: str) -> DistilledSet:
    """A published set by its name here."""
    return DistilledSet.load(ROWS / SETS[name] / "distilled.safetensors")


def rate_of(control: Control) -> float | None:
    """The rate that students take; None: the track's."""
    if control.rate in SETS:
        return source(control.rate).learning_rate
    return source(control.set).learning_rate if control.rate == OWN else float(control.rate)


def run(out: Path, data_root: Path, jobs: str) -> None:
    """Evaluate what is not there yet."""
    for number, control in enumerate(controls()):
        path = out / "sets" / f"{number:02d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(source(control.set), learning_rate=rate_of(control)).save(path)
        track = STUDY.with_name(f"{NETWORKS[control.network]}.toml")
        words = ["evaluate", str(path), "--track", str(track), "--out", str(out), "--json"]
        words += ["--data-root", str(data_root), "--device", "cpu", "--threads", "1"]
        words += ["--compile", "on", "--jobs", jobs]
        print(control.name, flush=True)
        subprocess.run([sys.executable, "-m", "robustdd_bench", *words], check=True)


def write(out: Path) -> None:
    """Keep the figures and outcomes of all runs.

    Raises:
        SystemExit: a run is missing.
    """
    found = {}
    for path in sorted(out.glob("cifar10-controls*/given/*/record.json")):
        record = read_record(path)
        distilled = DistilledSet.load(path.with_name("distilled.safetensors"))
        found[record.track.name, distilled.sha256()] = record
    rows: list[dict[str, Any]] = []
    for control in controls():
        wanted = replace(source(control.set), learning_rate=rate_of(control))
        key = NETWORKS[control.network], wanted.sha256()
        if key not in found or found[key].aggregates is None:
            sys.exit(f"error: {out} has no run of: {control.name}")
        record = found[key]
        machine = record.costs.environment
        rows.append(
            {
                "set": control.set,
                "of": SETS[control.set],
                "rate": control.rate,
                "learning_rate": rate_of(control),
                "network": control.network,
                "run_id": record.run_id,
                "track": record.track.id,
                "device": machine["processor"],
                "torch": record.torch,
                "outcomes": keep(record),
            }
        )
    write_json(RESULTS, {"runs": rows})


def accuracies(row: dict[str, Any]) -> list[tuple[float, float]]:
    """Mean and standard deviation over students at each level."""
    from robustdd_bench.board.kept import kept_bits

    each = kept_bits(row["outcomes"]).mean(2)
    return [(float(level.mean()), float(level.std(ddof=1))) for level in each]


PAIRS = (
    ("MAT", OWN, "MTT, MAT's rates", OWN),
    ("MAT", OWN, "MTT", OWN),
    ("MTT", "MAT", "MTT", OWN),
    ("MAT", "MTT", "MAT", OWN),
    ("MAT", OWN, "MTT", "MAT"),
    ("MAT", "MTT", "MTT", OWN),
    ("MAT", OWN, "MTT, MAT's rates", "MAT"),
    ("random", "MAT", "random", OWN),
)
"""Pairs on the first network: set and rate, less set and rate."""


def tables(results: dict[str, Any]) -> str:
    """Markdown: figures a network, then the paired differences."""
    rows = results["runs"]
    steps = ["clean", *(eps_label(eps) for eps in rows[0]["outcomes"]["levels"][1:])]
    examples = int(rows[0]["outcomes"]["bits"][0][0].partition(":")[0])
    parts = []
    for network in NETWORKS:
        lines = [
            [
                row["set"],
                f"{row['learning_rate'] or 0.01:.3g}" + (", its own" * (row["rate"] == OWN)),
                *(f"{100 * mean:.1f} ± {100 * std:.1f}" for mean, std in accuracies(row)),
                f"`{row['run_id']}`",
            ]
            for row in rows
            if row["network"] == network
        ]
        parts.append(
            f"{network}: mean ± standard deviation over "
            f"{len(rows[0]['outcomes']['student_seeds'])} students in %, {examples} test images, "
            "PGD-20 alone.\n"
        )
        parts.append(markdown(["set", "rate", *steps, "run"], lines))
    by_key = {(row["set"], row["rate"], row["network"]): row["outcomes"] for row in rows}
    lines = []
    pairs = [(*pair, "ConvNet-3") for pair in PAIRS]
    for network in list(NETWORKS)[1:]:
        pairs += [
            ("MAT", OWN, "MTT, MAT's rates", OWN, network),
            ("MAT", "0.01", "MTT, MAT's rates", "0.01", network),
            ("MAT", "0.01", "random", "0.01", network),
        ]
    for a, at, b, bt, network in pairs:
        found = differences([by_key[a, at, network]], [by_key[b, bt, network]])
        cells = [
            f"{100 * one.difference:+.1f} ({100 * one.interval.low:.1f} to "
            f"{100 * one.interval.high:.1f})"
            for _, one in found
        ]
        lines.append([network, f"{a} at {_rate(at)} less {b} at {_rate(bt)}", *cells])
    parts.append(
        "Paired differences in points, with 95 % intervals over students and examples; none is "
        "corrected for their number.\n"
    )
    parts.append(markdown(["students", "comparison", *steps], lines))
    machines = sorted({f"{row['device']}, torch {row['torch']}" for row in rows})
    parts.append(f"Machines: {'; '.join(machines)}, one CPU thread.\n")
    return "\n".join(parts)


def _rate(word: str) -> str:
    return "its own rate" if word == OWN else f"{word}'s rate" if word in SETS else word


def draw() -> None:
    """Write the tables into the study's page."""
    text = STUDY.read_text(encoding="utf-8")
    write_text(STUDY, marked(text, "tables", tables(read_json(RESULTS)), str(STUDY)))


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=("run", "write", "draw"))
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--jobs", default="1")
    given = parser.parse_args(arguments)
    if given.command == "run":
        run(given.out, given.data_root, given.jobs)
        return 0
    if given.command == "write":
        write(given.out)
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
