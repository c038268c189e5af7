"""The tables of docs/speed.md, out of the committed results; `scripts/generate.py` puts them in."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]
try:
    from bench_results import Machine, Result
    from floor_results import Floor
    from growth import committed
    from peer_results import Agreement, PeerResult
finally:
    del sys.path[:2]

BEGIN, END = "<!-- begin measured -->", "<!-- end measured -->"


def with_measured(text: str) -> str:
    """The page with its tables between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/speed.md lacks the marks {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{_measured()}\n{END}{tail}"


def _measured() -> str:
    parts = ["## Beside other codebases\n", *_peers(), "## Beside the naive form\n", *_naive()]
    parts += ["## The engine and its floor\n", *_floor()]
    return "\n".join([*parts, "## How cost grows\n", *_growth()])


def peers() -> list[PeerResult]:
    """The committed comparisons with other codebases."""
    return PeerResult.read(HERE / "peers" / "results")


def _peers() -> Iterable[str]:
    found = peers()
    rows = [("workload", "peer", "ours", "speed", "memory", "values agree")]
    for result in found:
        for side in result.ours:
            judged = [a for a in result.agreement if a.side == side.name]
            rows.append(
                (
                    result.workload,
                    f"[{result.peer.name}]({result.peer.url})",
                    _way(side.name),
                    _speed(side.times_as_fast_cpu),
                    _share(side.memory_ratio),
                    _agreed(judged),
                )
            )
    yield _table(rows)
    yield "What was driven, and how far the values lie apart:\n"
    for result in found:
        peer = result.peer
        state = (
            f"version {peer.version}" if peer.version else f"commit `{(peer.commit or '')[:12]}`"
        )
        yield f"- **{result.name}** ({peer.name}, {state}): {peer.driven}."
        for value in result.agreement:
            yield f"  - {_way(value.side)}, {value.what}: {value.value:.2g}{_judged(value)}."
        if result.facts:
            facts = "; ".join(f"{key} {value:.3g}" for key, value in result.facts.items())
            yield f"  - {facts}."
    yield "\n" + _where(found) + "\n"


def _naive() -> Iterable[str]:
    found = Result.read(HERE / "results")
    rows = [("benchmark", "workload", "naive form", "ours", "speed", "memory")]
    for result in found:
        memory = "" if result.memory_ratio is None else _share(result.memory_ratio)
        rows.append(
            (
                f"`{result.name}`",
                result.workload,
                result.naive.name,
                result.ours.name,
                _speed(result.speedup_cpu),
                memory,
            )
        )
    yield _table(rows)
    yield _where(found) + "\n"


def floors() -> list[Floor]:
    """The committed floors of the engine."""
    return Floor.read(HERE / "results" / "floor")


def _floor() -> Iterable[str]:
    found = floors()
    names = {
        "field": "the field's form, one graph of all steps",
        "engine": "the engine, eager",
        "compiled": "the engine with compiled kernels",
        "inductor": "gradient and products under `torch.compile`",
    }
    rows = [("a student step of", "way", "speed", "operations", "share of the floor")]
    for result in found:
        for way in result.ways:
            operations = "" if way.operations is None else f"{way.operations / 1e9:.1f} billion"
            share = "" if way.share is None else f"{way.share:.0%}"
            rows.append(
                (result.workload, names[way.way], _speed(way.times_as_fast), operations, share)
            )
    yield _table(rows)
    rates = ", ".join(f"{result.rate / 1e9:.0f}" for result in found)
    yield (
        f"A product of two large matrices ran at {rates} billion operations a second; the share "
        "is the time that the counted operations would take at that rate, over the time taken."
    )
    slow = [result.compile_s for result in found if result.compile_s is not None]
    if slow:
        seconds = ", ".join(f"{value:.0f} s" for value in slow)
        yield (
            f"`torch.compile` took {seconds} to compile the two functions, for one batch size and "
            "no augmentation; each further one compiles anew."
        )
    yield "\n" + _where(found) + "\n"


def _growth() -> Iterable[str]:
    found = committed()
    yield "![Processor time over each quantity, with the slope](images/growth.png)\n"
    rows = [("cost of", "over", "from", "to", "slope", "last three", "expected", "verdict")]
    rows += [
        (
            f"`{curve.name}`: {curve.workload}",
            curve.quantity,
            str(curve.x[0]),
            str(curve.x[-1]),
            f"{curve.slope:.2f}",
            f"{curve.tail_slope:.2f}",
            f"{curve.expected:g}",
            "**above**" if curve.above else "not above",
        )
        for curve in found
    ]
    yield _table(rows)
    yield _where(found) + "\n"


def _way(side: str) -> str:
    return "eager" if side == "ours" else side.removeprefix("ours-")


def _speed(ratio: float) -> str:
    text = f"{ratio:.2f} times as fast"
    return f"**{text}**" if ratio < 1 else text


def _share(ratio: float) -> str:
    text = f"{ratio:.2f} of it"
    return f"**{text}**" if ratio > 1 else text


def _agreed(judged: Sequence[Agreement]) -> str:
    failed = [a for a in judged if a.agrees is False]
    return "**no**" if failed else "yes"


def _judged(value: Agreement) -> str:
    if value.at_most is None:
        return " (shown, not judged)"
    return f" ({'agrees' if value.agrees else '**differs**'}: at most {value.at_most:.2g})"


def _where(found: Sequence[object]) -> str:
    """Machines, n and versions of some results."""
    machines, counts, torches = set[str](), set[int](), set[str]()
    for result in found:
        machine: Machine = result.machine  # type: ignore[attr-defined]
        machines.add(f"{machine.processor}, {machine.cores} cores, {machine.platform}")
        counts.add(result.n)  # type: ignore[attr-defined]
        torches.add(result.versions["torch"])  # type: ignore[attr-defined]
    return (
        f"n = {' or '.join(map(str, sorted(counts)))}, one thread; {'; '.join(sorted(machines))}; "
        f"torch {' and '.join(sorted(torches))}."
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"
