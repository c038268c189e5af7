"""Suites in which not every attack is tried on every example at every eps."""

from __future__ import annotations

import copy
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from small_runs import SUITE, example, plan_of, record_json, registry, run, without_costs
from test_records import refused, set_bits

from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits
from robustdd_bench.executors import Executor
from robustdd_bench.protocol.tracks import parse_track
from robustdd_bench.records.record import read_record
from robustdd_bench.runs.cells import cells_of
from robustdd_bench.runs.context import RunContext

LADDER = (0.02, 0.05, 0.10)


def suite():
    return example("random", track=str(SUITE))


def outcomes(student):
    """Bits after each attack at each eps, and those that were tried."""
    clean = unpack_bits(student.clean)
    return clean, {
        (r.attack, r.eps): (
            unpack_bits(r.robust),
            clean if r.tried is None else unpack_bits(r.tried),
        )
        for r in student.attacks
    }


def test_an_attack_on_survivors_is_tried_on_what_stands_and_its_bits_are_cumulative() -> None:
    some = False
    for student in suite().record.students:
        clean, found = outcomes(student)
        assert set(found) == {
            *(("fgsm", e) for e in LADDER),
            *(("noise", e) for e in LADDER),
            ("pgd", 0.05),
        }
        standing = clean
        for eps in LADDER:
            fgsm, noise = found["fgsm", eps], found["noise", eps]
            assert torch.equal(fgsm[1], clean)
            standing = standing & fgsm[0]
            assert torch.equal(noise[1], standing)
            assert not (noise[0] & ~standing).any()
            standing = noise[0]
            some |= bool((fgsm[1] & ~fgsm[0]).any())
        robust, tried = found["pgd", 0.05]
        assert not tried[60:].any()
        before = found["noise", 0.05][0]
        assert torch.equal(tried[:60], before[:60])
        assert torch.equal(robust[60:], before[60:])
    assert some


def test_the_headline_takes_in_every_attack_and_its_table_names_its_examples() -> None:
    record = suite().record
    for attack in record.aggregates.attacks:
        assert attack.accuracy.n_examples == (60 if attack.attack == "pgd" else 90)
    for index, student in enumerate(record.students):
        _, found = outcomes(student)
        worst = found["pgd", 0.05][0]
        assert record.aggregates.headline.values[index] == pytest.approx(
            float(worst.double().mean())
        )
        wide = worst & found["noise", 0.10][0]
        assert record.aggregates.robust[2].accuracy.values[index] == pytest.approx(
            float(wide.double().mean())
        )


def test_cells_of_survivors_read_the_outcomes_before_them(tmp_path) -> None:
    context = RunContext(plan_of(track=str(SUITE)), registry(), tmp_path, tmp_path)
    cells = {cell.name: cell for cell in cells_of(context, "attacks")}
    read = [len(cells[f"attacks/0/{a}"].inputs) for a in ("fgsm", "noise", "pgd")]
    assert read == [2, 3, 4]
    needed = {path.name for path in cells["attacks/1/pgd"].inputs}
    assert needed == {
        "distilled.safetensors",
        "student-1.safetensors",
        "attack-fgsm-1.json",
        "attack-noise-1.json",
    }


class Backwards(Executor):
    """Computes what was submitted last, in another thread."""

    slots = 100

    def __enter__(self):
        self._left, self._pool, self.names = [], ThreadPoolExecutor(1), []
        return self

    def submit(self, cell, job):
        future = Future()
        self._left.append((cell, job, future))
        self._pool.submit(self._last)
        return future

    def _last(self):
        time.sleep(0.05)  # until all that are ready were submitted
        cell, job, future = self._left.pop()
        self.names.append(cell.name)
        future.set_result(job.run_here(cell))

    def __exit__(self, *error):
        self._pool.shutdown()


def test_an_executor_may_take_the_cells_it_gets_in_any_order(tmp_path) -> None:
    backwards = Backwards()
    finished = run(plan_of(track=str(SUITE)), tmp_path, executor=backwards)
    assert backwards.names[1:3] == ["students/1", "attacks/1/fgsm"]
    assert without_costs(finished.record) == without_costs(suite().record)


def test_students_attacked_together_make_the_same_record(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(RunContext, "groups", lambda self, attack: [(0, 1)])
    finished = run(plan_of(track=str(SUITE)), tmp_path)
    assert (finished.folder / "cells" / "attack-pgd-0-1.json").is_file()
    assert without_costs(finished.record) == without_costs(suite().record)


def _survivor(fields, change):
    for result in fields["students"][0]["attacks"]:
        if (result["attack"], result["eps"]) == ("noise", 0.05):
            change(result)


def _more_tried(result):
    bits = unpack_bits(result["tried"])
    result["tried"] = set_bits(
        result["tried"], lambda b: b.__setitem__(int((~bits).nonzero()[0]), True)
    )


def _risen(result):
    tried = unpack_bits(result["tried"])
    place = int((~tried).nonzero()[0])
    result["robust"] = set_bits(result["robust"], lambda b: b.__setitem__(place, True))


def _untried(result):
    result["tried"] = None


@pytest.mark.parametrize("change", [_more_tried, _risen, _untried])
def test_a_forger_cannot_change_what_an_attack_was_tried_on(change, tmp_path) -> None:
    fields = copy.deepcopy(record_json(suite().folder))
    _survivor(fields, change)
    text = refused(fields, tmp_path, sign=True)
    assert "noise at eps 0.05" in text


def test_the_record_of_such_a_suite_is_read_again(tmp_path) -> None:
    assert read_record(suite().folder / "record.json") == suite().record


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('name = "fgsm"', 'name = "fgsm"\non = "survivors"', "the first attack of a suite"),
        ('name = "fgsm"', 'name = "fgsm"\nexamples = 3', "must be on all examples at every eps"),
        ('on = "survivors"', 'on = "some"', "attacks.1.on"),
        ("examples = 60", "examples = 0", "attacks.2.examples"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(old, new, line) -> None:
    text = SUITE.read_text().replace(old, new, 1)
    if "examples = 3" in new:
        text = text.replace('on = "survivors"\nconfig', 'on = "survivors"\nexamples = 3\nconfig')
    with pytest.raises(UsageError, match=line):
        parse_track(text, "suite.toml")


def test_an_attack_that_does_not_know_the_norm_is_refused_before_anything_runs(tmp_path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(SUITE.read_text() + '\n[[attacks]]\nname = "ddn"\n')
    with pytest.raises(UsageError, match="attack 'ddn' cannot attack in Linf; it knows L2"):
        plan_of(track=str(path))
