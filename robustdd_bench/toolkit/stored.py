"""What stored networks are known by: experts and teachers, which runs share by a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from robustdd_bench.distillers import DistillTask
from robustdd_bench.identity import identity
from robustdd_bench.seeds import Seeds


def training_facts(task: DistillTask, seeds: Seeds, network: nn.Module) -> dict[str, Any]:
    """What shapes any training on a task, beside the recipe; JSON values.

    Args:
        task: data, preprocessing and device.
        seeds: of the training.
        network: one of the kind that is trained.
    """
    return {
        "seeds": identity(seeds),
        "preprocessing": identity(task.preprocessing),
        "flip": task.allow_flip,
        "data": task.data_sha256,
        "network": hashlib.sha256(str(network).encode()).hexdigest(),
        "torch": torch.__version__,
        "device": task.device.type,
        "threads": torch.get_num_threads() if task.device.type == "cpu" else 0,
    }


def key_of(description: Mapping[str, Any]) -> str:
    """The key of what a description says: 16 hexadecimal digits of its hash."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
