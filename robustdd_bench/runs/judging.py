"""Students of a track: how one is trained on a set, and how networks are attacked.

The cells of a run do this, and so does the Python entrance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustdd_bench.attacks import Attack
from robustdd_bench.distillers import DistilledSet, Reporter
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import AttackOutcome, attack_students
from robustdd_bench.evaluation.students import TrainedStudent, train_student
from robustdd_bench.guard import blame_stranger, plain_text
from robustdd_bench.runs.context import RunContext


def trained_student(
    context: RunContext, distilled: DistilledSet, index: int, reporter: Reporter
) -> tuple[TrainedStudent, Tensor]:
    """A student of the track, trained on a set; and bits (N,): what it gets right."""
    plan, seeds = context.plan, context.seeds.shared()
    student = train_student(
        context.student_network(distilled, seeds.seed("student-init", index)),
        distilled,
        plan.track.students,
        seeds,
        index,
        flip=plan.track.data.flip,
        reporter=reporter,
        norm=plan.track.threat.norm,
        teacher=teacher_network(context, distilled),
        compile=context.compile,
    )
    return student, right_bits(context, student.network)


def teacher_network(context: RunContext, distilled: DistilledSet) -> nn.Module | None:
    """The teacher of a set on the device, where the track's students are taught by one.

    Raises:
        UsageError: its network is not installed, or its weights are not those of the network.
    """
    teacher = distilled.teacher
    if teacher is None or context.plan.track.students.teaching is None:
        return None
    entry = context.registry.get("networks", teacher.network)
    facts = context.shape_CHW, context.num_classes  # before, since they may read the data
    with blame_stranger(entry.plugin, f"network {teacher.network!r}"):
        try:
            with torch.device("meta"):  # the options are a stranger's: nothing is allocated
                body = entry.load()(*facts, **teacher.options)
        except TypeError as error:
            raise UsageError(
                f"the set's teacher: its options do not fit: {plain_text(error)}"
            ) from error
        return teacher.load_into(body).to(context.device)


def right_bits(context: RunContext, network: nn.Module) -> Tensor:
    """Bits (N,) on the CPU: what a network gets right without an attack."""
    split = context.evaluation
    return classified(network, split.pixels(), split.labels, context.plan.track.threat.batch_size)


def attacked(
    context: RunContext,
    networks: Sequence[nn.Module],
    students: Sequence[int],
    attack: Attack,
    name: str,
    eps: float,
    right: Sequence[Tensor],
    **options: Any,
) -> list[AttackOutcome]:
    """An attack at one eps on the split that the track judges on.

    Args:
        context: data, track and seed.
        networks: pixels to logits, on the device.
        students: which student each of them is: whose noise is drawn.
        attack: the attack.
        name: its name, which decides its noise too.
        eps: of the track's norm.
        right: bits (N,) for each network: which examples are attacked.
        **options: see `attack_students`.
    """
    split, seeds = context.evaluation, context.seeds.shared()
    return attack_students(
        networks,
        split.pixels(),
        split.labels,
        attack,
        context.threat(eps),
        [seeds.seed("attack", name, r) for r in students],
        context.plan.track.threat.batch_size,
        right,
        name=name,
        compile=context.compile,
        **options,
    )
