"""robustdd-bench: a benchmark for robust dataset distillation.

Importing this package imports neither torch nor any method: everything heavy is loaded on use.
The functions are those of `robustdd_bench.api`; docs/python.md shows them.
"""

from typing import TYPE_CHECKING, Any

from robustdd_bench.moved import find_old_names

if TYPE_CHECKING:
    from robustdd_bench.api import (
        attack,
        evaluate,
        load_records,
        load_run,
        load_set,
        run,
        train_student,
        transfer,
    )
    from robustdd_bench.entrance import Records, Run
    from robustdd_bench.runs.single import AttackResults, Student
    from robustdd_bench.transfers.matrix import TransferMatrix

__version__ = "0.1.0"

__all__ = [
    "AttackResults",
    "Records",
    "Run",
    "Student",
    "TransferMatrix",
    "attack",
    "evaluate",
    "load_records",
    "load_run",
    "load_set",
    "run",
    "train_student",
    "transfer",
]

find_old_names()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from robustdd_bench import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
