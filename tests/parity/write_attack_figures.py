"""Write what torchattacks and pyautoattack end at, on the tensors of `tests/attack_parity.py`.

In an environment that has both: python tests/parity/write_attack_figures.py
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import attack_parity as parity
import pyautoattack.fab_pt
import torch
import torchattacks
from torch import Tensor

EPS = parity.LINF.eps


def handed_out(draws: Iterator[Tensor]) -> Callable[..., Tensor]:
    """In place of a function that draws: the next of our numbers."""
    return lambda like, *_, **__: next(draws).view(like.shape).to(like.dtype)


def vmi() -> Tensor:
    model, images, labels = parity.inputs()
    theirs = torchattacks.VMIFGSM(model, eps=EPS, alpha=0.008, steps=4, decay=1.0, N=3, beta=1.5)
    ours = parity.streams()
    draws = (ours.uniform((1, 4, 4), -1.5 * EPS, 1.5 * EPS, torch.float64) for _ in range(12))

    def fill(self: Tensor, *_: float) -> Tensor:
        return self.copy_(next(draws))

    with mock.patch.object(torch.Tensor, "uniform_", fill):
        found: Tensor = theirs(images, labels)
    return found


def jitter() -> Tensor:
    model, images, labels = parity.inputs()
    theirs = torchattacks.Jitter(model, eps=EPS, alpha=0.008, steps=4, random_start=False)
    ours = parity.streams()
    draws = (ours.normal((parity.CLASSES,), torch.float64) for _ in range(4))
    with mock.patch.object(torch, "randn_like", handed_out(draws)):
        found: Tensor = theirs(images, labels)
    return found


def spsa() -> Tensor:
    """One example at a time: the package draws one set of signs for a whole batch."""
    model, images, labels = parity.inputs()
    ours = parity.streams()
    ours = parity.ExampleGenerator(ours.bits(()), ours.index)
    signs = torch.stack([ours.bits((1, 4, 4)) >= 0 for _ in range(24)]).double()
    found = []
    for i in range(len(images)):
        draws = iter(signs[:, i].split(8))

        def fill(self: Tensor, draws: Iterator[Tensor] = draws) -> Tensor:
            return self.copy_(next(draws).unsqueeze(1))

        theirs = torchattacks.SPSA(
            model, eps=EPS, lr=0.3 * EPS, nb_iter=3, nb_sample=8, max_batch_size=8
        )
        with mock.patch.object(torch.Tensor, "bernoulli_", fill):
            found.append(theirs(images[i : i + 1], labels[i : i + 1]))
    return torch.cat(found)


def pgd(least: bool) -> Tensor:
    model, images, labels = parity.inputs()
    theirs = torchattacks.PGD(model, eps=EPS, alpha=0.008, steps=4, random_start=False)
    if least:
        theirs.set_mode_targeted_least_likely(1, quiet=True)
    else:
        theirs.set_mode_targeted_by_function(lambda _, y: (y + 1) % parity.CLASSES, quiet=True)
    found: Tensor = theirs(images, labels)
    return found


def fab(norm: str) -> Tensor:
    model, images, labels = parity.fab_inputs()
    x = images.float()
    theirs = pyautoattack.fab_pt.FABAttack_PT(
        lambda images: model(images).float(),
        norm=norm,
        n_iter=30,
        eps=1e3,
        targeted=True,
        device=torch.device("cpu"),
    )
    nearest = torch.full((parity.COUNT,), torch.inf)
    for target in range(2, parity.CLASSES + 1):
        theirs.target_class = target
        moved = theirs.attack_single_run(x, labels, is_targeted=True)
        delta = (moved - x).flatten(1)
        length = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
        broken = model(moved).argmax(1) != labels
        nearest = torch.minimum(nearest, length.masked_fill(~broken, torch.inf))
    return nearest


def main() -> None:
    """Run all of them, and write the file."""
    points = {
        "vmi-fgsm": vmi(),
        "jitter": jitter(),
        "spsa": spsa(),
        "pgd-targeted": pgd(False),
        "pgd-targeted-least": pgd(True),
    }
    versions = {
        name: importlib.metadata.version(name) for name in ("torchattacks", "pyautoattack", "torch")
    }
    content = {
        "versions": versions,
        "eps": EPS,
        "last_points": {name: x.flatten(1).tolist() for name, x in points.items()},
        "fab_distances": {norm: fab(norm).tolist() for norm in ("Linf", "L2")},
    }
    parity.FIGURES.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
