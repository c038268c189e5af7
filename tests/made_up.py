"""Records with outcomes of one's choice: what a run would have written had it come out so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from small_runs import example

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.figures import save_distilled
from robustdd_bench.evaluation.outcomes import pack_bits
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.records.parts import TeacherInfo
from robustdd_bench.records.record import Record, aggregate_students, make_record, write_record
from robustdd_bench.records.set_info import set_info
from robustdd_bench.seeds import Seeds

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
    preprocessing: dict | None = None,
    provenance: dict | None = None,
    teacher: dict | None = None,
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
        preprocessing: the set's own, as fields of `Preprocessing`.
        provenance: what the set says of its making.
        **config: the method's settings.
    """
    record = example("random").record
    robust = np.asarray(headline, bool)
    clean = np.ones_like(robust) if clean is None else np.asarray(clean, bool)
    noise = clean if noise is None else np.asarray(noise, bool)
    students = []
    seeds = Seeds(seed, record.track.family, method).shared()
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
            drawn = seeds.seed("attack", result.attack, student.index)
            told = {"robust": packed, "broken": broken, "seed": drawn}
            attacks.append(result.model_copy(update=told))
        packed = pack_bits(torch.from_numpy(right.copy()))
        told = {"clean": packed, "attacks": tuple(attacks)}
        told["seed"] = seeds.seed("student-init", student.index)
        students.append(student.model_copy(update=told))
    info = record.method.model_copy(
        update={"name": method, "config": config, "reference": reference}
    )
    fields = {name: getattr(record, name) for name in Record.model_fields} | {
        "method": info,
        "seed": seed,
        "command": f"robustdd run --method {method} --seed {seed}",
        "distilled": record.distilled.model_copy(
            update={
                "labels": labels,
                "preprocessing": preprocessing,
                "provenance": provenance or record.distilled.provenance,
                "teacher": teacher and TeacherInfo.model_validate(teacher),
            }
        ),
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


def set_of(record: Record) -> DistilledSet:
    """A set that a record of method `random` might speak of, but for its hash and its pixels."""
    plain = DistilledSet.load(example("random").folder / "distilled.safetensors")
    said = record.distilled
    images, labels = plain.images.clone(), plain.labels
    images[1, 0, 0, 0] = record.seed % 100 / 100  # another set from another seed
    if said.pixel_max > 1:
        images[0, 0, 0, 0] = said.pixel_max
    if said.labels == "soft":
        labels = torch.nn.functional.one_hot(labels).float()
    return replace(
        plain,
        images=images,
        labels=labels,
        learning_rate=said.learning_rate,
        augmentation=said.augmentation,
        preprocessing=said.preprocessing and Preprocessing.from_dict(said.preprocessing),
        provenance=said.provenance,
        mosaic=said.mosaic,
    )


def put(record: Record, board: Path) -> Path:
    """Lay a record on a board, with a set that fits it and its preview."""
    folder = board / "results" / record.track.name / record.method.name / record.run_id
    found = set_of(record)
    found.save(folder / "distilled.safetensors")
    save_distilled(folder / "distilled.png", found, record.data.num_classes)
    fields = {name: getattr(record, name) for name in Record.model_fields}
    fields["distilled"] = set_info(found, record.data.num_classes)
    del fields["results_sha256"]
    write_record(folder / "record.json", make_record(**fields))
    return folder
