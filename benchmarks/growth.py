"""Measure how cost grows, write results/growth/<name>.json, and draw docs/images/growth.png.

    python benchmarks/growth.py [NAME]... [--n 3]
    python benchmarks/growth.py --draw            only draw what is committed

Each curve is one process of one thread; its points take turns, and of n measurements of each point
the fastest counts. The slope of log time over log size is held against the expected one.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from allocator import ALLOCATORS, surroundings
from bench_results import this_commit, this_machine
from growth_results import MARGIN, TAIL, Growth, slope

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results" / "growth"
PICTURE = ROOT.parent / "docs" / "images" / "growth.png"
PACKAGES = ("torch", "numpy", "robustdd-bench")


def child(name: str, n: int) -> None:
    """Measure a curve in this process; print the processor times of each point as JSON."""
    import torch
    from growth_curves import CURVES

    torch.set_num_threads(1)
    curve = CURVES[name]
    works = [curve.prepare(x) for x in curve.x]
    works[0]()  # the first use of a kernel is nobody's
    taken: list[list[float]] = [[] for _ in works]
    for k in range(n):
        order = range(len(works)) if k % 2 == 0 else reversed(range(len(works)))
        for i in order:
            gc.collect()
            start = time.process_time()
            works[i]()
            taken[i].append(round(time.process_time() - start, 6))
    print(json.dumps(taken))


def measure(name: str, n: int) -> Growth:
    """Measure a curve, each point `n` times."""
    from growth_curves import CURVES

    curve, load = CURVES[name], os.getloadavg()[0]
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, str(n)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=surroundings("kept"),
    )
    taken: list[list[float]] = json.loads(done.stdout)
    fastest = [min(values) for values in taken]
    tail = slope(curve.x[-TAIL:], fastest[-TAIL:])
    return Growth(
        schema_version=1,
        name=name,
        title=curve.title,
        quantity=curve.quantity,
        workload=curve.workload,
        command=f"python benchmarks/growth.py {name} --n {n}",
        commit=this_commit(),
        allocator=dict(ALLOCATORS["kept"]),
        threads=1,
        n=n,
        machine=this_machine(load),
        versions={"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        x=list(curve.x),
        cpu_s=taken,
        expected=curve.expected,
        reason=curve.reason,
        slope=slope(curve.x, fastest),
        tail_slope=tail,
        above=tail > curve.expected + MARGIN,
    )


def committed(folder: Path = RESULTS) -> list[Growth]:
    """The curves that are in the repository, in the order of the names in `growth_curves`."""
    found = Growth.read(folder)
    places = ("engine", "dc", "dm", "suite")
    return sorted(found, key=lambda g: (places.index(g.name.partition("-")[0]), g.name))


def draw(curves: list[Growth], path: Path = PICTURE) -> None:
    """Small multiples: measured points, and the expected slope through the largest one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    columns = 4
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.75 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, curve in zip(grid, curves, strict=False):
        xs, ys = curve.x, curve.fastest
        line = [ys[-1] * (x / xs[-1]) ** curve.expected for x in xs]
        axes.plot(xs, line, "--", color="grey", linewidth=0.9)
        axes.plot(xs, ys, color="tab:red" if curve.above else "tab:blue", marker="o", markersize=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(xs, [str(x) for x in xs])
        axes.xaxis.set_minor_locator(NullLocator())
        low, high = min(*ys, *line), max(*ys, *line)
        axes.set_ylim(low / 1.5, high * 1.6)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(curve.title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        most = "expected" if curve.name != "engine-width" else "at most"
        axes.text(
            0.04, 0.95,
            f"slope {curve.slope:.2f}\nlast three {curve.tail_slope:.2f}",
            transform=axes.transAxes, va="top", fontsize=8,
            color="tab:red" if curve.above else "tab:blue",
        )  # fmt: skip
        axes.text(
            0.97, 0.05, f"dashed: {most} {curve.expected:g}",
            transform=axes.transAxes, ha="right", fontsize=7, color="dimgrey",
        )  # fmt: skip
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("processor time, s", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def main() -> None:
    """Measure what is named, or everything; then draw."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
        return
    from growth_curves import CURVES

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CURVES))
    parser.add_argument("--n", type=int, default=3, help="measurements of each point")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(CURVES))
    if unknown or options.n < 3:
        parser.error(f"unknown curve {unknown[0]!r}" if unknown else "--n must be at least 3")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in () if options.draw else options.names or CURVES:
        found = measure(name, options.n)
        (RESULTS / f"{name}.json").write_text(
            found.model_dump_json(indent=2) + "\n", encoding="utf-8"
        )
        print(
            f"{name}: slope {found.slope:.2f}, of the last three {found.tail_slope:.2f}, "
            f"expected {found.expected:g}{': ABOVE' if found.above else ''}",
            flush=True,
        )
    draw(committed())


if __name__ == "__main__":
    main()
