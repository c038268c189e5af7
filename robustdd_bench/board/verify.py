"""Verification: what a record claims, held against its witnesses.

The students are taken from the run's folder, or trained again on its distilled set; then one
forward pass over the witnesses proves which examples fall. Nothing that the record says of
robustness is believed: the accuracy that is left is an upper bound of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits, worst_case
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.statistics import mean
from robustdd_bench.evaluation.students import weights_sha256
from robustdd_bench.evaluation.witnesses import load, proven
from robustdd_bench.plugins import Registry
from robustdd_bench.runs.assembly import WITNESSES
from robustdd_bench.runs.plan import resolve_device
from robustdd_bench.runs.record_parts import StudentResult
from robustdd_bench.runs.records import Record, read_record
from robustdd_bench.runs.reporter import RunReporter
from robustdd_bench.runs.work import run_cell, threads
from robustdd_bench.runs.workbench import Workbench

OTHER_WEIGHTS = 0.01
"""How far accuracies may lie apart where students trained again are not the same to the bit (other
hardware, another torch)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """One eps (0: clean), means over students in [0,1]."""

    eps: float
    claimed: float
    """What the record says."""
    left: float
    """What the witnesses leave standing."""
    unproven: int
    """Examples that fell by the record and have no valid witness, over all students."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of a verification."""

    levels: tuple[Level, ...]
    witnesses: int
    same_weights: bool
    """Whether every student is the record's, bit for bit."""

    @property
    def agrees(self) -> bool:
        """Whether the record's claims are proven."""
        if self.same_weights:
            return all(level.unproven == 0 and level.left == level.claimed for level in self.levels)
        return all(abs(level.left - level.claimed) <= OTHER_WEIGHTS for level in self.levels)


def verify_witnesses(
    run: Path,
    registry: Registry,
    *,
    data_root: Path,
    reporter: Callable[[Path], RunReporter],
    witnesses: Path | None = None,
    device: str = "auto",
) -> Verdict:
    """Hold a run, published or not, against its witnesses.

    Args:
        run: its folder.
        registry: the installed plugins; the method itself is not run, but for reference rows,
            whose set is not published.
        data_root: where datasets are looked for.
        reporter: makes the reporter for a (temporary) folder.
        witnesses: their file; by default that in the folder.
        device: "auto", "cpu" or "cuda".

    Raises:
        UsageError: files are missing or damaged, or belong to another run or other data.
    """
    record = read_record(run / "record.json")
    path = witnesses or run / WITNESSES
    if record.status != "complete":
        raise UsageError(f"{run} did not end; there is nothing to verify")
    if not path.is_file():
        raise UsageError(
            f"there are no witnesses at {path}; make them: {record.command} --witnesses"
        )
    with _bench(record, run, registry, data_root, device) as bench, threads(bench.plan.threads):
        assert record.data is not None
        assert record.distilled is not None
        if bench.data_hashes != (record.data.train_sha256, record.data.evaluation_sha256):
            raise UsageError(f"the data under {data_root} are not those of the record")
        if not bench.set_path.exists():
            for cell in [*bench.cells("experts"), *bench.cells("distill")]:
                run_cell(bench, cell, reporter(bench.folder))
        if bench.distilled().sha256() != record.distilled.sha256:
            raise UsageError(f"the distilled set in {run} is not that of the record")
        for cell, student in zip(bench.cells("students"), record.students, strict=True):
            if not _taken(bench, run, student):
                run_cell(bench, cell, reporter(bench.folder))
        return _judge(bench, record, path)


@contextlib.contextmanager
def _bench(
    record: Record, run: Path, registry: Registry, data_root: Path, device: str
) -> Iterator[Workbench]:
    """A workbench in a temporary folder with the run's distilled set in its place."""
    plan = dataclasses.replace(record.plan(), device=resolve_device(device))
    with tempfile.TemporaryDirectory(prefix="robustdd-verify.") as folder:
        bench = Workbench(plan, registry, Path(folder), data_root)
        source = run / bench.set_path.name
        bench.set_path.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            shutil.copyfile(source, bench.set_path)
        elif not record.method.reference:
            raise UsageError(f"there is no {source}")
        yield bench


def _taken(bench: Workbench, run: Path, student: StudentResult) -> bool:
    """Take a student from the run's folder, if it is there and is the record's."""
    target = bench.student_path(student.index)
    source = run / "cells" / target.name
    if not source.is_file():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with contextlib.suppress(UsageError, KeyError, ValueError, RuntimeError):
        if bench.student_facts(student.index)["sha256"] == student.sha256 and (
            weights_sha256(bench.student(student.index)) == student.sha256
        ):
            return True
    target.unlink()
    return False


def _judge(bench: Workbench, record: Record, path: Path) -> Verdict:
    evaluation, track = bench.evaluation, bench.plan.track
    pixels, size = evaluation.pixels(), track.threat.batch_size
    found, about = load(path, pixels.cpu())
    if about.get("run_id") != record.run_id:
        raise UsageError(f"{path} holds the witnesses of run {about.get('run_id', '?')[:12]}")
    ladder = track.threat.ladder
    claimed: dict[float, list[float]] = {eps: [] for eps in (0.0, *ladder)}
    left: dict[float, list[float]] = {eps: [] for eps in (0.0, *ladder)}
    unproven = dict.fromkeys((0.0, *ladder), 0)
    same = True
    for student in record.students:
        network = bench.student(student.index)
        same &= weights_sha256(network) == student.sha256
        own = found.take((found.student == student.index).nonzero().squeeze(1))
        said = unpack_bits(student.clean)
        clean = classified(network, pixels, evaluation.labels, size)
        bits = {(r.attack, r.eps): unpack_bits(r.robust) for r in student.attacks}
        worst = worst_case(bits, said, ladder)
        claimed[0.0].append(float(said.double().mean()))
        left[0.0].append(float(clean.double().mean()))
        for eps in ladder:
            falls = proven(network, pixels, evaluation.labels, own, bench.threat(eps), size)
            claimed[eps].append(float(worst[eps].double().mean()))
            left[eps].append(float((clean & ~falls).double().mean()))
            unproven[eps] += int((said & ~worst[eps] & ~falls).sum())
    levels = tuple(
        Level(eps=eps, claimed=mean(claimed[eps]), left=mean(left[eps]), unproven=unproven[eps])
        for eps in (0.0, *ladder)
    )
    return Verdict(levels=levels, witnesses=len(found), same_weights=same)
