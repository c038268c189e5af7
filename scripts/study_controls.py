"""The study of what decides the gain of a distilled set: its rate, or the network it is trained on.

    python scripts/study_controls.py run --out DIR --data-root FOLDER [--jobs N]
    python scripts/study_controls.py write --out DIR
    python scripts/study_controls.py draw

`run` takes published sets of cifar10-small-ipc5, and sets of MAT that it makes for the study, gives
each the learning rate that a control asks for, and evaluates them on the tracks
docs/studies/cifar10-controls*.toml; what is there already is not done again. `write` keeps figures
and outcomes in docs/studies/cifar10-controls.json, and draws; `draw` makes the tables of
cifar10-controls.md from that file alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustdd_bench.board.kept import differences, keep, kept_bits
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.filenames import RECORD_FILE, SET_FILE
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
"""The published sets, and the runs that they are from."""
MADE = {
    "MAT, natural experts": ("eps=0.0", "flavour=pgd"),
}
"""Sets that are made for the study: MAT by its preset `full-data`, with these settings."""
MAKING = "cifar10-controls-made"
"""The track that they are made on."""
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
    """One of `SETS` or `MADE`."""
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
    for name in (*SETS, *MADE):
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


def source(name: str, out: Path) -> DistilledSet:
    """A set by its name here; `out` is where those of the study were made."""
    if name in SETS:
        return DistilledSet.load(ROWS / SETS[name] / SET_FILE)
    path = _made(name, out)
    if path is None:
        sys.exit(f"error: {out} has no set of {name}; see `run`")
    return DistilledSet.load(path / SET_FILE)


def _made(name: str, out: Path) -> Path | None:
    """The folder of the run that made a set of the study; None if there is none yet."""
    wanted = {word.partition("=")[0]: word.partition("=")[2] for word in MADE[name]}
    for path in sorted((out / MAKING / "mat").glob(f"*/{RECORD_FILE}")):
        config = read_record(path).method.config
        if all(str(config[key]) == value for key, value in wanted.items()):
            return path.parent
    return None


def rate_of(control: Control, out: Path) -> float | None:
    """The rate that students take; None: the track's."""
    if control.rate in SETS:
        return source(control.rate, out).learning_rate
    own = source(control.set, out).learning_rate
    return own if control.rate == OWN else float(control.rate)


def run(out: Path, data_root: Path, jobs: str) -> None:
    """Make and evaluate what is not there yet."""
    here = ["--out", str(out), "--data-root", str(data_root), "--device", "cpu", "--threads", "1"]
    here += ["--compile", "on", "--jobs", jobs, "--json"]
    for name, settings in MADE.items():
        words = ["run", "--method", "mat", "--preset", "full-data", *here]
        words += ["--track", str(STUDY.with_name(f"{MAKING}.toml"))]
        words += [word for setting in settings for word in ("--set", setting)]
        print(name, flush=True)
        subprocess.run([sys.executable, "-m", "robustdd_bench", *words], check=True)
    for number, control in enumerate(controls()):
        path = out / "sets" / f"{number:02d}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(source(control.set, out), learning_rate=rate_of(control, out)).save(path)
        track = STUDY.with_name(f"{NETWORKS[control.network]}.toml")
        print(control.name, flush=True)
        words = ["evaluate", str(path), "--track", str(track), *here]
        subprocess.run([sys.executable, "-m", "robustdd_bench", *words], check=True)


def write(out: Path) -> None:
    """Keep the figures and outcomes of all runs.

    Raises:
        SystemExit: a run is missing.
    """
    found = {}
    for path in sorted(out.glob(f"cifar10-controls*/given/*/{RECORD_FILE}")):
        record = read_record(path)
        distilled = DistilledSet.load(path.with_name(SET_FILE))
        found[record.track.name, distilled.sha256()] = record
    rows: list[dict[str, Any]] = []
    for control in controls():
        wanted = replace(source(control.set, out), learning_rate=rate_of(control, out))
        key = NETWORKS[control.network], wanted.sha256()
        if key not in found or found[key].aggregates is None:
            sys.exit(f"error: {out} has no run of: {control.name}")
        record = found[key]
        machine = record.costs.environment
        rows.append(
            {
                "set": control.set,
                "of": SETS.get(control.set) or " ".join(("mat", *MADE[control.set])),
                "rate": control.rate,
                "learning_rate": wanted.learning_rate or record.track.students.learning_rate,
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
    each = kept_bits(row["outcomes"]).mean(2)
    return [(float(level.mean()), float(level.std(ddof=1))) for level in each]


PAIRS = (
    ("MAT", OWN, "MTT, MAT's rates", OWN),
    ("MAT", OWN, "MAT, natural experts", OWN),
    ("MAT, natural experts", OWN, "MTT, MAT's rates", OWN),
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
                f"{row['learning_rate']:.3g}" + (", its own" * (row["rate"] == OWN)),
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
