"""Records with outcomes of one's choice: what a run would have written had it come out so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from small_runs import example

from robustdd_bench.evaluation.outcomes import pack_bits
from robustdd_bench.runs.records import Record, aggregate_students, make_record, write_record

STUDENTS, EXAMPLES = 2, 90


def made_up(
    method: str,
    headline,
    *,
    seed: int = 0,
    clean=None,
    noise=None,
    labels: str = "hard",
    reference: bool = False,
    **config,
) -> Record:
    """A record of the track `fast` whose networks are right as told.

    Args:
        method: its name.
        headline: bits (R, N) under pgd at eps .10; no attack does more.
        seed: of the distillation.
        clean: bits without an attack; all right by default.
        noise: bits under noise at every eps; those of `clean` by default.
        labels: "hard" or "soft".
        reference: an end of the scale.
        **config: the method's settings.
    """
    record = example("random").record
    robust = np.asarray(headline, bool)
    clean = np.ones_like(robust) if clean is None else np.asarray(clean, bool)
    noise = clean if noise is None else np.asarray(noise, bool)
    students = []
    for student, right, under_noise, under_pgd in zip(
        record.students, clean, noise, robust, strict=True
    ):
        attacks = []
        for result in student.attacks:
            bits = {("noise", 0.05): under_noise, ("noise", 0.1): under_noise}
            bits = bits.get((result.attack, result.eps), right)
            bits = under_pgd if (result.attack, result.eps) == ("pgd", 0.1) else bits
            broken = int(right.sum()) - int(bits.sum())
            packed = pack_bits(torch.from_numpy(bits.copy()))
            attacks.append(result.model_copy(update={"robust": packed, "broken": broken}))
        packed = pack_bits(torch.from_numpy(right.copy()))
        students.append(student.model_copy(update={"clean": packed, "attacks": tuple(attacks)}))
    info = record.method.model_copy(
        update={"name": method, "config": config, "reference": reference}
    )
    fields = {name: getattr(record, name) for name in Record.model_fields} | {
        "method": info,
        "seed": seed,
        "command": f"robustdd run --method {method} --seed {seed}",
        "distilled": record.distilled.model_copy(update={"labels": labels}),
        "students": tuple(students),
        "aggregates": aggregate_students(students, record.track),
    }
    del fields["results_sha256"]
    fields["run_id"] = Record.model_construct(**fields).plan().run_id()
    return make_record(**fields)


def share(right: int, *, first: int = 0) -> np.ndarray:
    """Bits (R, N): of every network, `right` examples from number `first` on."""
    bits = np.zeros((STUDENTS, EXAMPLES), bool)
    bits[:, first : first + right] = True
    return bits


def put(record: Record, board: Path) -> Path:
    """Lay a record on a board, with a set and a preview."""
    folder = board / "results" / record.track.name / record.method.name / record.run_id
    folder.mkdir(parents=True)
    for name in ("distilled.safetensors", "distilled.png"):
        shutil.copyfile(example("random").folder / name, folder / name)
    write_record(folder / "record.json", record)
    return folder
