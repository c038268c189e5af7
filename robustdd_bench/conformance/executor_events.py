"""What an executor hands on of what cells tell: all of it, of the right cell, in order, in time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from robustdd_bench.conformance.executor_runs import WatchedCell, row
from robustdd_bench.conformance.findings import FailedCheckError


def check_events(one: WatchedCell, rows: Sequence[str]) -> None:
    """Check what was told of a cell.

    Args:
        one: the cell.
        rows: the values of the run, in order; see `row`.

    Raises:
        FailedCheckError: events are of another cell, came late, or in another order.
    """
    name = one.cell.name
    other = next((told_of for told_of, _ in one.events if told_of != name), None)
    if other is not None:
        raise FailedCheckError(f"an event of {name} was told of {other}")
    if one.late:
        raise FailedCheckError(f"{name}: {one.late} events came after its future was done")
    bars: dict[int, int] = {}
    for _, event in one.events:
        kind, bar = event["event"], event.get("bar")
        if kind == "bar":
            bars[event["bar"]] = 0
        elif kind in ("advance", "close") and bar not in bars:
            raise FailedCheckError(f"{name}: {kind} of a bar that is not open")
        elif kind == "advance":
            if event["done"] < bars[event["bar"]]:
                raise FailedCheckError(f"{name}: a bar goes back; events are out of order")
            bars[event["bar"]] = event["done"]
        elif kind == "close":
            del bars[event["bar"]]
    if bars:
        raise FailedCheckError(f"{name}: {len(bars)} bars were not closed; events are lost")
    if not _in_order(_rows(one), rows):
        raise FailedCheckError(f"{name}: values come in another order than they were made in")


def _rows(one: WatchedCell) -> Iterator[str]:
    for _, event in one.events:
        for stage, step, values in event["rows"] if event["event"] == "rows" else ():
            yield row({"step": step, "stage": stage, **values})


def _in_order(part: Iterable[str], whole: Sequence[str]) -> bool:
    """Whether all of a part stands in the whole, in the same order."""
    rest = iter(whole)
    return all(one in rest for one in part)
