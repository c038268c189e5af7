"""The study of MAT on digits: moving average x eps of the experts x flavour of their training.

    python scripts/study_mat_digits.py run [--out DIR] [--jobs N]    run what is not there yet
    python scripts/study_mat_digits.py write [--out DIR]             collect the runs, then draw
    python scripts/study_mat_digits.py draw                          tables and plot from the JSON

Every run is a `robustdd run --validate`: judged on a split of the training data, so the test split
is not read. `write` collects them in docs/studies/mat-digits.json; `draw` makes the tables between
the marks of docs/studies/mat-digits.md and the plot beside it from that file alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from robustdd_bench.board.kept import keep
from robustdd_bench.files import atomic_write, read_json, write_json
from robustdd_bench.records.record import read_record
from robustdd_bench.text.tables import markdown, marked

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "docs" / "studies" / "mat-digits.md"
RESULTS = STUDY.with_suffix(".json")
PLOT = ROOT / "docs" / "images" / "mat-digits.png"

TRACK = "digits-ipc10"
EMA = (0.0, 0.9, 0.99, 0.999)
EPS = (0.05, 0.1, 0.15)
FAR_EPS = 0.2
FLAVOURS = ("pgd", "trades", "mart", "fast")
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Setting:
    """One run of the study; what is not named is the preset's."""

    method: str
    seed: int
    ema: float = 0.0
    eps: float = 0.0
    flavour: str = "natural"

    def command(self, out: Path) -> list[str]:
        """The call."""
        words = ["run", "--method", self.method, "--track", TRACK, "--validate", "--json"]
        words += ["--seed", str(self.seed), "--threads", "1", "--device", "cpu", "--out", str(out)]
        if self.method == "mat":
            flavour = "pgd" if self.flavour == "natural" else self.flavour
            words += ["--set", f"ema={self.ema}", "--set", f"eps={self.eps}"]
            words += ["--set", f"flavour={flavour}"]
        return words


def settings() -> Iterator[Setting]:
    """All runs, the most telling first."""
    for ema in EMA:
        for eps in EPS:
            yield Setting("mat", 0, ema, eps, "pgd")
    for ema in EMA:
        yield Setting("mat", 0, ema)
    yield Setting("mtt", 0)
    for flavour in FLAVOURS[1:]:
        for eps in EPS:
            for ema in EMA:
                yield Setting("mat", 0, ema, eps, flavour)
    for ema in EMA:
        yield Setting("mat", 0, ema, FAR_EPS, "pgd")
    for seed in SEEDS[1:]:
        for ema in EMA:
            yield Setting("mat", seed, ema, 0.1, "pgd")
        for eps in (0.0, EPS[0], EPS[2]):
            yield Setting("mat", seed, 0.99, eps, "pgd" if eps else "natural")
        yield Setting("mtt", seed)


def run(out: Path, jobs: int) -> int:
    """Run every setting, `jobs` at a time; what is there already is not run again."""

    def one(setting: Setting) -> bool:
        words = [sys.executable, "-m", "robustdd_bench", *setting.command(out)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        print(f"{setting}: {_told(done)}", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(jobs) as pool:
        return 0 if all(list(pool.map(one, settings()))) else 1


def _told(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode}"
    figures = json.loads(done.stdout)
    robust = ", ".join(f"{100 * row['mean']:.1f}" for row in figures["robust"])
    return f"clean {100 * figures['clean']['mean']:.1f}, robust {robust}"


def collect(out: Path) -> dict[str, Any]:
    """The figures of every run under `out`, as JSON values.

    Raises:
        SystemExit: a run of the study is missing, or was not made with `--validate`.
    """
    found: dict[Setting, dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    for path in sorted(out.rglob("record.json")):
        record = read_record(path)
        if record.split != "validation" or record.track.name != TRACK:
            sys.exit(f"error: {path} is not a validation run on {TRACK}")
        if record.aggregates is None:
            continue
        config, name = dict(record.method.config), record.method.name
        setting = Setting(name, record.seed)
        if name == "mat":
            ema, eps, flavour = config.pop("ema"), config.pop("eps"), config.pop("flavour")
            setting = Setting(name, record.seed, ema, eps, flavour if eps else "natural")
        if shared.setdefault(name, config) != config:
            sys.exit(f"error: {path} differs from the other runs in more than the study varies")
        levels = [record.aggregates.clean, *(row.accuracy for row in record.aggregates.robust)]
        found[setting] = {
            "method": name,
            "seed": record.seed,
            "ema": setting.ema,
            "eps": setting.eps,
            "flavour": setting.flavour,
            "run_id": record.run_id,
            "accuracy": [round(level.mean, 6) for level in levels],
            "std_students": [round(level.std or 0.0, 6) for level in levels],
            "outcomes": keep(record),
        }
        about = {
            "ladder": [0.0, *record.track.threat.ladder],
            "students": record.track.students.count,
            "examples": levels[0].n_examples,
            "torch": record.torch,
            "processor": record.costs.environment.get("processor", "?"),
            "commit": record.costs.commit.sha if record.costs.commit else None,
        }
    missing = [setting for setting in settings() if setting not in found]
    if missing:
        sys.exit(f"error: {len(missing)} runs are missing, the first is {missing[0]}")
    return {"about": about, "shared": shared, "runs": [found[setting] for setting in settings()]}


def tables(results: dict[str, Any]) -> str:
    """Markdown: the grid at the headline eps, then the whole ladder."""
    ladder = results["about"]["ladder"]
    headline = ladder.index(0.1)
    first = [row for row in results["runs"] if row["seed"] == 0 and row["method"] == "mat"]
    by = {(row["flavour"], row["eps"], row["ema"]): row for row in first}
    parts = ["Robust accuracy at the headline eps .10, seed 0, in %:\n"]
    rows = []
    for flavour, eps in dict.fromkeys((row["flavour"], row["eps"]) for row in first):
        cells = [f"{100 * by[flavour, eps, ema]['accuracy'][headline]:.1f}" for ema in EMA]
        rows.append([flavour, f"{eps:g}", *cells])
    heads = ["experts", "their eps", *(f"ema {ema:g}" for ema in EMA)]
    parts.append(markdown(heads, rows))
    parts.append("\nSettings run with three distillation seeds, mean ± std over seeds, in %:\n")
    groups: dict[tuple[Any, ...], list[list[float]]] = {}
    for row in results["runs"]:
        key = (row["method"], row["flavour"], row["eps"], row["ema"])
        groups.setdefault(key, []).append(row["accuracy"])
    rows = [
        [_name(key), *_spreads(found)] for key, found in groups.items() if len(found) == len(SEEDS)
    ]
    steps = ["clean", *(f"{eps:g}" for eps in ladder[1:])]
    parts.append(markdown(["setting", *steps], rows))
    parts.append("\nEvery run, mean ± std over students, in %:\n")
    rows = [
        [
            _name((row["method"], row["flavour"], row["eps"], row["ema"])),
            str(row["seed"]),
            *(
                f"{100 * mean:.1f} ± {100 * std:.1f}"
                for mean, std in zip(row["accuracy"], row["std_students"], strict=True)
            ),
        ]
        for row in results["runs"]
    ]
    parts.append(markdown(["setting", "seed", *steps], rows))
    return "\n".join(parts)


def _name(key: tuple[Any, ...]) -> str:
    method, flavour, eps, ema = key
    if method == "mtt":
        return "mtt"
    return f"natural experts, ema {ema:g}" if not eps else f"{flavour}, eps {eps:g}, ema {ema:g}"


def _spreads(found: Sequence[Sequence[float]]) -> list[str]:
    return [
        f"{100 * fmean(level):.1f} ± {100 * stdev(level):.1f}" for level in zip(*found, strict=True)
    ]


def plot(results: dict[str, Any]) -> None:
    """Two panels: accuracy at the headline over the experts' eps, and the ladder over ema."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ladder = results["about"]["ladder"]
    headline = ladder.index(0.1)
    first = [row for row in results["runs"] if row["seed"] == 0]
    figure = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colours = dict(zip(EMA, ("tab:blue", "tab:green", "tab:orange", "tab:red"), strict=True))
    styles = dict(zip(FLAVOURS, ("-", "--", ":", "-."), strict=True))
    for flavour in FLAVOURS:
        for ema in EMA:
            points = sorted(
                (row["eps"], 100 * row["accuracy"][headline])
                for row in first
                if row["method"] == "mat"
                and row["ema"] == ema
                and row["flavour"] in (flavour, "natural")
            )
            left.plot(*zip(*points, strict=True), styles[flavour], color=colours[ema], marker=".")
    for ema, colour in colours.items():
        left.plot([], [], color=colour, label=f"ema {ema:g}")
    for flavour, style in styles.items():
        left.plot([], [], style, color="black", label=flavour)
    mtt = next(row for row in first if row["method"] == "mtt")
    left.axhline(100 * mtt["accuracy"][headline], color="grey", linewidth=0.8, label="MTT, tuned")
    left.set_xlabel("eps of the experts' adversary (0: natural experts)")
    left.set_ylabel("accuracy at the headline eps .10, %")
    left.set_title("seed 0", fontsize=9)
    left.legend(fontsize=7, ncols=2)
    for ema, colour in colours.items():
        row = next(
            r
            for r in first
            if (r["method"], r["flavour"], r["eps"], r["ema"]) == ("mat", "pgd", 0.1, ema)
        )
        right.errorbar(
            ladder,
            [100 * x for x in row["accuracy"]],
            yerr=[100 * x for x in row["std_students"]],
            color=colour,
            marker="o",
            markersize=4,
            capsize=2,
            label=f"MAT, pgd at .10, ema {ema:g}",
        )
    right.errorbar(
        ladder,
        [100 * x for x in mtt["accuracy"]],
        color="grey",
        marker="o",
        markersize=4,
        label="MTT, tuned",
    )
    right.set_xlabel("eps of the attack (0: clean)")
    right.set_title("seed 0; bars: std over students", fontsize=9)
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    with atomic_write(PLOT) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def draw() -> None:
    """Write the tables and the plot."""
    results = read_json(RESULTS)
    text = marked(STUDY.read_text(encoding="utf-8"), "tables", tables(results), str(STUDY))
    with atomic_write(STUDY) as file:
        file.write(text.encode())
    plot(results)


def main() -> int:
    """Parse the call; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("run", "write", "draw"))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mat-digits")
    parser.add_argument("--jobs", type=int, default=1)
    call = parser.parse_args()
    if call.action == "run":
        return run(call.out, call.jobs)
    if call.action == "write":
        write_json(RESULTS, collect(call.out))
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
