"""Which cells a run has, what each of them reads, and where its output goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from robustdd_bench.errors import UsageError
from robustdd_bench.executors import STAGES, Cell, Resources
from robustdd_bench.filenames import REUSE_FILE
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.folder import label
from robustdd_bench.runs.reuse import reused_cell


def all_cells(context: RunContext, stages: Sequence[str] = STAGES) -> list[Cell]:
    """The cells of a run, each after those whose files it reads."""
    return [cell for stage in stages for cell in cells_of(context, stage)]


def cells_of(context: RunContext, stage: str) -> list[Cell]:
    """The cells of a stage, in a fixed order."""
    return _complete(context, _cells(context, stage))


def _complete(context: RunContext, cells: Sequence[Cell]) -> list[Cell]:
    """The cells with what all cells of the run have in common."""
    plan = context.plan
    resources = Resources(gpus=int(plan.device == "cuda"), threads=plan.threads)
    run = _scope_of_run(context)  # once: it hashes the plan
    return [replace(cell, scope=_scope(context, cell, run), resources=resources) for cell in cells]


def cell_named(context: RunContext, name: str) -> Cell:
    """The cell of that name.

    Raises:
        UsageError: the run has none of that name.
    """
    stage = name.partition("/")[0]
    cells = _cells(context, stage) if stage in STAGES else []
    for cell in _complete(context, [cell for cell in cells if cell.name == name]):
        return cell
    raise UsageError(f"run {context.plan.run_id()} has no cell {name!r}")


def cell_of_reused(context: RunContext) -> Cell:
    """The cell of a set that is taken from another run."""
    return reused_cell(
        context.folder, context.set_path, context.data_hashes[0], _scope_of_run(context)
    )


def reused(context: RunContext) -> Cell | None:
    """The cell of a set that was reused and is whole; None where the method made its own.

    Where such a set was lost or damaged since, the method makes it.
    """
    if not (context.folder / REUSE_FILE).exists():
        return None
    cell = cell_of_reused(context)
    return cell if cell.done() else None


def _scope_of_run(context: RunContext) -> str:
    return f"run {context.plan.run_id()}"


def _scope(context: RunContext, cell: Cell, run: str) -> str:
    """Whose a cell is: the run's, or that of the folder of the store, which runs share."""
    try:
        return f"store {cell.output.parent.relative_to(context.store).as_posix()}"
    except ValueError:
        return run


def _cells(context: RunContext, stage: str) -> list[Cell]:
    if stage in ("experts", "distill"):
        return _making(context, stage)
    if stage == "students":
        return [
            Cell(
                stage=stage,
                name=f"{stage}/{r}",
                output=context.student_path(r),
                inputs=(context.set_path,),
                data=context.data_read,
                students=(r,),
            )
            for r in context.trained
        ]
    if stage == "attacks":
        return _attacks(context)
    names = [attack.name for attack in context.plan.attacks]
    return [
        Cell(
            stage=stage,
            name=f"{stage}/{r}",
            output=context.sanity_path(r),
            inputs=(
                context.set_path,
                context.student_path(r),
                *_attack_files(context, names, (r,)),
            ),
            data=context.data_read,
            students=(r,),
        )
        for r in context.judged
    ]


def _making(context: RunContext, stage: str) -> list[Cell]:
    """Cells of the experts, or the one of the distillation; a reused set stands for both."""
    ready_made = reused(context)
    if ready_made is not None:
        return [ready_made] if stage == "distill" else []
    parts, data = context.parts(), context.data_read[:1]
    if stage == "distill":
        inputs = tuple(part.output for part in parts)
        return [Cell(stage=stage, name=stage, output=context.set_path, inputs=inputs, data=data)]
    return [
        Cell(stage=stage, name=f"{stage}/{part.name}", output=part.output, data=data)
        for part in parts
    ]


def _attacks(context: RunContext) -> list[Cell]:
    """Cells of the attacks; one on survivors reads the outcomes of all before it."""
    return [
        Cell(
            stage="attacks",
            name=f"attacks/{label(group)}/{attack.name}",
            output=context.attack_path(attack.name, group),
            inputs=(
                context.set_path,
                *(context.student_path(r) for r in context.needed_students(attack.name, group)),
                *_attack_files(context, context.earlier(attack.name), group),
            ),
            data=context.data_read,
            students=group,
            attack=attack.name,
            beside=(context.witness_path(attack.name, group),) if context.witnesses else (),
        )
        for attack in context.plan.attacks
        for group in context.groups(attack.name)
    ]


def _attack_files(
    context: RunContext, attacks: Sequence[str], students: Sequence[int]
) -> list[Path]:
    """The files of those attacks that hold outcomes of any of those students."""
    return [
        context.attack_path(name, group)
        for name in attacks
        for group in context.groups(name)
        if set(group) & set(students)
    ]
