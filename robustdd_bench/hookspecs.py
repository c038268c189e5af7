"""The hooks of robustdd-bench. A plugin implements any of them with `hookimpl`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click
Register = Callable[..., None]  # register(name, "package.module:attribute", "summary in a line")

hookspec = pluggy.HookspecMarker("robustdd")
hookimpl = pluggy.HookimplMarker("robustdd")


@hookspec
def robustdd_register_distillers(register: Register) -> None:
    """Register subclasses of `robustdd_bench.distillers.Distiller`."""


@hookspec
def robustdd_register_attacks(register: Register) -> None:
    """Register subclasses of `robustdd_bench.attacks.Attack`."""


@hookspec
def robustdd_register_datasets(register: Register) -> None:
    """Register loaders `load(root: Path, download: bool) -> protocol.datasets.ImageData`."""


@hookspec
def robustdd_register_networks(register: Register) -> None:
    """Register builders `build(shape_CHW, num_classes, **options) -> torch.nn.Module`."""


@hookspec
def robustdd_register_tracks(register: Register) -> None:
    """Register tracks as `"package:file.toml"`, the file being part of the package."""


@hookspec
def robustdd_register_executors(register: Register) -> None:
    """Register subclasses of `robustdd_bench.executors.Executor`."""


@hookspec
def robustdd_register_commands(cli: click.Group) -> None:
    """Add commands to the command line; `plugins/robustdd_cite` does."""


@hookspec
def robustdd_report(event: Mapping[str, Any]) -> None:
    """Receive each event of a run: `{"event": "run" | "metrics" | "images" | ..., ...}`."""


@hookspec
def robustdd_remark() -> str | None:
    """Say in a line what `robustdd plugins` and `doctor` should tell, e.g. why a plugin is idle."""
