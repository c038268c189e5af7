"""Batches of attacks: what an attack is handed, and the first look at what comes back.

Shapes: N examples of a split, M of them, B rows of a batch, R students, C channels, H height,
W width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack, AttackResult, AttackTask, Model, ThreatModel
from robustdd_bench.evaluation.together import Students
from robustdd_bench.seeds import ExampleGenerator, as_int64


def alone(
    attack: Attack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    seed: int,
    places: Tensor,
    batch_size: int,
    said: list[str],
    sources: Sequence[Model],
) -> Tensor:
    """Adversarial examples of one student (M,C,H,W), for the examples at `places`."""
    chunks = torch.split(places, batch_size) if len(places) else ()
    moved = [
        _perturb(
            attack,
            AttackTask(
                model=model,
                images=images[c],
                labels=labels[c],
                threat=replace(threat),
                generator=ExampleGenerator(seed, c.clone()),
                sources=tuple(sources),
            ),
            said,
        )
        for c in chunks
    ]
    return torch.cat(moved) if moved else images[places]


def together(
    attack: Attack,
    students: Students,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    seeds: Sequence[int],
    places: Sequence[Tensor],
    batch_size: int,
    said: list[str],
) -> list[Tensor]:
    """The same for R students: a chunk holds up to `batch_size` examples of each of them."""
    key = torch.tensor([as_int64(seed) for seed in seeds], device=images.device)
    found: list[list[Tensor]] = [[images[where[:0]]] for where in places]
    for start in range(0, max(map(len, places)), batch_size):
        parts = [where[start : start + batch_size] for where in places]
        sizes = [len(part) for part in parts]
        index = torch.cat(parts)
        owner = torch.repeat_interleave(
            torch.arange(len(parts), device=index.device), torch.tensor(sizes, device=index.device)
        )
        task = AttackTask(
            model=students.rows(owner),
            images=images[index],
            labels=labels[index],
            threat=replace(threat),
            generator=ExampleGenerator(key[owner], index),
        )
        moved = _perturb(attack, task, said)
        for pieces, piece in zip(found, moved.split(sizes), strict=True):
            pieces.append(piece)
    return [torch.cat(pieces) for pieces in found]


def _perturb(attack: Attack, task: AttackTask, said: list[str]) -> Tensor:
    """One batch; all that is handed over are copies, so an attack may write into them."""
    images = task.images
    shape, dtype, kind, device = images.shape, images.dtype, type(images), images.device
    result = attack.perturb(task)
    if type(result) is not AttackResult:
        raise TypeError(f"perturb returned {type(result).__name__}, not an AttackResult")
    found = result.images
    if type(found) not in (kind, nn.Parameter):  # a kind of its own may answer what it likes
        raise TypeError(f"perturb returned {type(found).__name__}, not a tensor")
    if found.shape != shape or found.dtype != dtype:
        raise ValueError(
            f"perturb returned {found.dtype} of shape {tuple(found.shape)} for images of "
            f"{dtype} and shape {tuple(shape)}"
        )
    said.extend(map(str, result.remarks))
    return found.detach().to(device)


def kinds_of_remark(remarks: Iterable[str]) -> tuple[str, ...]:
    """The first remark of each kind: those that differ in their numbers alone are of one."""
    kinds: dict[str, str] = {}
    for text in remarks:
        kinds.setdefault(re.sub(r"\d+(\.\d+)?", "#", text), text)
    return tuple(kinds.values())
