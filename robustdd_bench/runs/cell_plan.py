"""Which cells a stage has, what each of them reads, and where its output goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from robustdd_bench.runs.cells import Cell
from robustdd_bench.runs.folder import label

if TYPE_CHECKING:
    from robustdd_bench.runs.context import Workbench


def cells_of(bench: Workbench, stage: str) -> list[Cell]:
    """The cells of a stage, independent of one another, in a fixed order."""
    return [
        replace(cell, scope=_scope(bench, cell), device=bench.plan.device)
        for cell in _cells(bench, stage)
    ]


def _scope(bench: Workbench, cell: Cell) -> str:
    """Whose a cell is: the run's, or that of the folder of the store, which runs share."""
    try:
        return f"store {cell.output.parent.relative_to(bench.store).as_posix()}"
    except ValueError:
        return bench.scope


def _cells(bench: Workbench, stage: str) -> list[Cell]:
    if stage in ("experts", "distill"):
        return _making(bench, stage)
    if stage == "students":
        return [
            Cell(
                stage=stage,
                name=f"{stage}/{r}",
                output=bench.student_path(r),
                inputs=(bench.set_path,),
                data=bench.data_read,
                students=(r,),
            )
            for r in bench.trained
        ]
    if stage == "attacks":
        return _attacks(bench)
    names = [attack.name for attack in bench.plan.attacks]
    return [
        Cell(
            stage=stage,
            name=f"{stage}/{r}",
            output=bench.sanity_path(r),
            inputs=(bench.set_path, bench.student_path(r), *_attack_files(bench, names, (r,))),
            data=bench.data_read,
            students=(r,),
        )
        for r in bench.judged
    ]


def _making(bench: Workbench, stage: str) -> list[Cell]:
    """Cells of the experts, or the one of the distillation; a set taken over stands for both."""
    adopted = bench.adopted()
    if adopted is not None:
        return [adopted] if stage == "distill" else []
    parts, data = bench.parts(), bench.data_read[:1]
    if stage == "distill":
        inputs = tuple(part.output for part in parts)
        return [Cell(stage=stage, name=stage, output=bench.set_path, inputs=inputs, data=data)]
    return [
        Cell(stage=stage, name=f"{stage}/{part.name}", output=part.output, data=data)
        for part in parts
    ]


def _attacks(bench: Workbench) -> list[Cell]:
    """Cells of the attacks; one on survivors comes in a wave after all before it."""
    cells, wave = [], 0
    for attack in bench.plan.attacks:
        earlier = bench.earlier(attack.name)
        wave += bool(earlier)
        cells += [
            Cell(
                stage="attacks",
                name=f"attacks/{label(group)}/{attack.name}",
                output=bench.attack_path(attack.name, group),
                inputs=(
                    bench.set_path,
                    *(bench.student_path(r) for r in bench.needed_students(attack.name, group)),
                    *_attack_files(bench, earlier, group),
                ),
                data=bench.data_read,
                students=group,
                attack=attack.name,
                wave=wave if earlier else 0,
                beside=(bench.witness_path(attack.name, group),) if bench.witnesses else (),
            )
            for group in bench.groups(attack.name)
        ]
    return cells


def _attack_files(bench: Workbench, attacks: Sequence[str], students: Sequence[int]) -> list[Path]:
    """The files of those attacks that hold outcomes of any of those students."""
    return [
        bench.attack_path(name, group)
        for name in attacks
        for group in bench.groups(name)
        if set(group) & set(students)
    ]
