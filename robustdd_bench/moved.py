"""Where modules that authors of plugins import have gone: an old name imports the new module.

`import robustdd_bench.toolkit.blocks` gives `robustdd_bench.toolkit.fast.blocks`, the same object,
with a DeprecationWarning that names the new path. Only names that are no longer there come here.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

MOVED = {
    "models": "strict",
    "toolkit.seeds": "seeds",
    "toolkit.randomness": "seeds",
    "toolkit.pooling": "protocol.pooling",
    "toolkit.allocator": "toolkit.fast.allocator",
    "toolkit.blocks": "toolkit.fast.blocks",
    "toolkit.capture": "toolkit.fast.capture",
    "toolkit.compile": "toolkit.fast.compile",
    "toolkit.convolutions": "toolkit.fast.convolutions",
    "toolkit.flat": "toolkit.fast.flat",
    "toolkit.instancenorm": "toolkit.fast.instancenorm",
    "toolkit.optimiser": "toolkit.fast.optimiser",
    "toolkit.precision": "toolkit.fast.precision",
    "toolkit.engine": "toolkit.trajectories.engine",
    "toolkit.experts": "toolkit.trajectories.experts",
    "toolkit.learned": "toolkit.trajectories.learned",
    "toolkit.matching": "toolkit.trajectories.matching",
    "toolkit.trajectory_config": "toolkit.trajectories.config",
    "toolkit.unroll": "toolkit.trajectories.unroll",
    "toolkit.redrawn": "toolkit.random_networks",
    "evaluation.agreement": "verification.agreement",
    "evaluation.comparison": "evaluation.statistics.comparison",
    "evaluation.meanings": "evaluation.sanity.meanings",
    "evaluation.randomisation": "evaluation.statistics.randomisation",
    "evaluation.scores": "evaluation.statistics.scores",
    "evaluation.suite_checks": "evaluation.sanity.suite_checks",
    "runs.executors": "executors",
    "runs.given": "imports.external_set",
    "runs.plan": "records.plan",
    "runs.records": "records.record",
    "runs.sweep": "sweeps.run",
    "runs.sweep_plan": "sweeps.plan",
}
"""Old name -> new name, both within the package."""


def _told(old: str, new: str, depth: int) -> None:
    text = f"{old} has moved: import {new}"
    warnings.warn(text, DeprecationWarning, stacklevel=depth + 1)


class _OldNames:
    """Finds and loads the modules of `MOVED`, after everything else has looked."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, inside = name.partition(".")
        if package != __package__ or inside not in MOVED:
            return None
        return ModuleSpec(name, cast("Loader", self))

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = f"{__package__}.{MOVED[module.__name__.partition('.')[2]]}"
        _told(module.__name__, new, depth=2)
        # What stands here in the end is what the import statement gives.
        sys.modules[module.__name__] = importlib.import_module(new)


def former(package: str, module: str) -> Callable[[str], object]:
    """A package's `__getattr__`, where the package has the name that one of its modules had."""

    def attribute(name: str) -> object:
        new = f"{package}.{module}"
        if name.startswith("__") or not hasattr(found := importlib.import_module(new), name):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _told(f"{package}.{name}", f"{new}.{name}", depth=2)
        return getattr(found, name)

    return attribute


def find_old_names() -> None:
    """Let old names be found from now on; once is enough."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
