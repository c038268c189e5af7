"""Settings of several runs side by side: in which they differ, and how a value is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from robustdd_bench.protocol.tracks import eps_label


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which some configurations differ, in the order in which they stand there."""
    names = dict.fromkeys(name for config in configs for name in config)
    return [
        name
        for name in names
        if len({json.dumps(config.get(name), sort_keys=True) for config in configs}) > 1
    ]


def setting_text(name: str, value: object) -> str:
    """A setting with its value, e.g. "eps 2/255" or "image_lr 0.01"."""
    if name.endswith("eps") and isinstance(value, float) and value > 0:
        return f"{name} {eps_label(value)}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
