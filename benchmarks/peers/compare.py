"""Measure our code beside other codebases, and write results/<name>.json.

    python benchmarks/peers/compare.py mtt --peer FOLDER      fetched (git clone)
    python benchmarks/peers/compare.py dcbench --peer FOLDER
    python benchmarks/peers/compare.py torchattacks pyautoattack   installed (pip install)
    python benchmarks/peers/compare.py mtt --peer FOLDER --tiny --out DIR      a rehearsal

A name stands for all comparisons that begin with it. Each measurement is one process of one thread
that prepares the work and calls it once; the sides take turns, with the same settings of the
allocator. The inputs are the same, and the values that come out are compared. Neither the peers nor
anything of theirs is part of this repository.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from allocator import ALLOCATORS, surroundings  # noqa: E402
from bench_results import Variant, this_commit, this_machine  # noqa: E402
from measure import _resident  # noqa: E402
from peer_results import Agreement, Ours, Peer, PeerResult, ratios  # noqa: E402
from variants import OURS, PEER, way  # noqa: E402

RESULTS = HERE / "results"
PACKAGES = ("torch", "numpy", "robustdd-bench")


def comparisons() -> dict[str, Any]:
    """Every comparison by name."""
    import attack_peers
    import dc_bench
    import mtt

    return mtt.COMPARISONS | dc_bench.COMPARISONS | attack_peers.COMPARISONS


def child(asked: dict[str, Any]) -> None:
    """Do the work of one side once, print what it took, and write its values if asked to."""
    import torch
    from comparison import Call

    from robustdd_bench.records.environment import PeakMemory

    torch.set_num_threads(1)
    how = way(asked["side"])
    if how.switch is not None:
        how.switch()
    peer = None if asked["peer"] is None else Path(asked["peer"])
    call = Call(
        side=asked["side"],
        peer=peer,
        seed=asked["seed"],
        store=Path(asked["store"]),
        tiny=asked["tiny"],
    )
    prepared = comparisons()[asked["name"]].prepare(call)
    if asked["prepare_only"]:
        print("{}")
        return
    gc.collect()
    before = _resident()
    if how.rehearse:
        prepared.work()
        gc.collect()
    memory = PeakMemory("cpu")
    start, cpu = time.perf_counter(), time.process_time()
    result = prepared.work()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = max(0, memory.read() - before)
    if asked["values"] is not None:
        torch.save(dict(prepared.values(result)), asked["values"])
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak}))


def _once(asked: dict[str, Any], allocator: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(asked)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=surroundings(allocator) | dict(way(asked["side"]).environment),
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def compare(
    name: str, peer: Path | None, n: int, allocator: str, *, tiny: bool = False
) -> PeerResult:
    """Measure all sides of a comparison `n` times each.

    Raises:
        PeerMissingError: the peer is not there.
    """
    import torch

    comparison = comparisons()[name]
    comparison.peer.check(peer)
    identity = comparison.peer.identity(peer)
    load = os.getloadavg()[0]
    sides = [PEER, *OURS]
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    values: dict[str, list[Any]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as store:
        asked: dict[str, Any] = {
            "name": name,
            "side": "ours",
            "peer": None if peer is None else str(peer.resolve()),
            "seed": 0,
            "store": store,
            "tiny": tiny,
            "values": None,
            "prepare_only": True,
        }
        _once(
            asked, allocator
        )  # what all processes share, such as trained students, is made before
        for k in range(n):
            for side in sides if k % 2 == 0 else reversed(sides):
                kept = Path(store) / f"{side}-{k}.pt" if k < comparison.seeds else None
                asked |= {
                    "side": side,
                    "seed": k % comparison.seeds,
                    "values": None if kept is None else str(kept),
                    "prepare_only": False,
                }
                taken[side].append(_once(asked, allocator))
                print(name, side, taken[side][-1], file=sys.stderr, flush=True)
                if kept is not None:
                    values[side].append(torch.load(kept))
    theirs = _variant(PEER, taken[PEER])
    ours = []
    agreement: list[Agreement] = []
    facts: dict[str, float] = {}
    for side in sides:
        facts |= comparison.facts(side, values[side])
        if side != PEER:
            variant = _variant(side, taken[side])
            ours.append(Ours(**variant.model_dump(), **ratios(theirs, variant)))
            agreement += comparison.agreement(side, values[PEER], values[side])
    place = "" if peer is None else " --peer FOLDER"
    chosen = "" if allocator == "kept" else f" --allocator {allocator}"
    return PeerResult(
        schema_version=1,
        name=name,
        workload=comparison.text,
        peer=Peer(
            name=comparison.peer.name,
            url=comparison.peer.url,
            driven=comparison.driven,
            **identity,
        ),
        command=f"python benchmarks/peers/compare.py {name}{place} --n {n}{chosen}",
        commit=this_commit(),
        allocator=dict(ALLOCATORS[allocator]),
        threads=1,
        n=n,
        machine=this_machine(load),
        versions={"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        theirs=theirs,
        ours=ours,
        agreement=agreement,
        facts={key: round(value, 6) for key, value in facts.items()},
    )


def _variant(side: str, values: list[dict[str, float]]) -> Variant:
    wall = [round(v["wall_s"], 6) for v in values]
    cpu = [round(v["cpu_s"], 6) for v in values]
    peak = [int(v["peak_bytes"]) for v in values]
    return Variant(
        name=side,
        wall_s=wall,
        cpu_s=cpu,
        peak_bytes=peak,
        median_wall_s=statistics.median(wall),
        median_cpu_s=statistics.median(cpu),
        median_peak_bytes=statistics.median(peak),
    )


def summary(result: PeerResult) -> str:
    """What a comparison found, losses as plainly as wins."""
    lines = []
    for side in result.ours:
        lines.append(
            f"{result.name}: {side.name} is {side.times_as_fast_cpu:.2f} times as fast as "
            f"{result.peer.name} (processor time; wall {side.times_as_fast:.2f}), "
            f"with {side.memory_ratio:.3f} of its memory"
        )
        for found in result.agreement:
            if found.side == side.name:
                word = {True: "agrees", False: "DIFFERS", None: "shown"}[found.agrees]
                lines.append(f"  {word}: {found.what}: {found.value:.3g}")
    lines += [f"  {key}: {value:.4g}" for key, value in result.facts.items()]
    return "\n".join(lines)


def main() -> None:
    """Compare what is named."""
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
        return
    from comparison import PeerMissingError

    known = comparisons()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help=", ".join(known))
    parser.add_argument("--peer", type=Path, help="where the fetched peer lies")
    parser.add_argument("--n", type=int, default=5, help="processes per side")
    parser.add_argument("--allocator", choices=tuple(ALLOCATORS), default="kept")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal of seconds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    options = parser.parse_args()
    chosen = [name for name in known if any(name.startswith(wanted) for wanted in options.names)]
    for wanted in options.names:
        if not any(name.startswith(wanted) for name in known):
            parser.error(f"no comparison begins with {wanted!r}; there are {', '.join(known)}")
    if options.n < 5:
        parser.error("--n must be at least 5")
    if options.tiny and options.out.resolve() == RESULTS:
        parser.error("--tiny measures nothing: give it another --out than the committed results")
    try:
        for name in chosen:
            known[name].peer.check(options.peer)
        for name in chosen:
            result = compare(name, options.peer, options.n, options.allocator, tiny=options.tiny)
            options.out.mkdir(parents=True, exist_ok=True)
            text = result.model_dump_json(indent=2) + "\n"
            (options.out / f"{name}.json").write_text(text, encoding="utf-8")
            print(summary(result), flush=True)
    except PeerMissingError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
