"""Students: training one as DC-BENCH's evaluation does against `train_student`.

Both train the same ConvNet-3 of width 128 from the same weights on the same 100 images, without
augmentation, SGD with momentum .9 and weight decay 5e-4, in one batch. Two things differ by design
and stay: DC-BENCH makes a new optimiser when it lowers the learning rate, which forgets the
momentum, and it computes accuracy and loss in every step, for which it waits. The weights are
therefore compared at the drop, up to where the recipes coincide; the last ones are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
from typing import Any

import torch
import torch.nn.functional as F
from comparison import Call, Comparison, Prepared, Repository, Values, agreement, relative
from peer_results import Agreement
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from variants import PEER, way

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.evaluation.students import train_student
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.protocol.tracks import StudentSpec
from robustdd_bench.runs.progress.reporter import NullReporter
from robustdd_bench.seeds import Seeds, isolated_rng

REPOSITORY = Repository(
    name="dc_benchmark",
    url="https://github.com/justincui03/dc_benchmark",
    files=("evaluator/evaluator_utils.py", "networks/convnet.py"),
)
EPOCHS, TINY_EPOCHS = 24, 6
CLASSES, RATE = 10, 0.01
CLOSE = 1e-3


def _data(tiny: bool) -> tuple[Tensor, Tensor, nn.Sequential]:
    source = torch.Generator().manual_seed(0)
    images = torch.randn(20 if tiny else 100, 3, 32, 32, generator=source)
    with isolated_rng(0):
        body = convnet((3, 32, 32), CLASSES, width=8 if tiny else 128)
    return images, torch.arange(len(images)) % CLASSES, body


def drop(epochs: int) -> int:
    """After how many epochs DC-BENCH lowers the rate, of `epochs` in all.

    Its loop makes one epoch more than it is told, and lowers the rate after the epoch of number
    told // 2 + 1, counted from 0.
    """
    return (epochs - 1) // 2 + 2


def _flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def _values(network: nn.Module, at_drop: Tensor, images: Tensor, labels: Tensor) -> Values:
    with torch.no_grad():
        loss = F.cross_entropy(network(images), labels)
    return {"drop": at_drop, "last": _flat(network), "loss": float(loss)}


def _peer(call: Call, epochs: int) -> Prepared:
    assert call.peer is not None
    sys.path[:0] = [str(call.peer), str(call.peer / "evaluator")]
    from evaluator_utils import EvaluatorUtils  # type: ignore[import-not-found]
    from networks.convnet import ConvNet  # type: ignore[import-not-found]

    images, labels, body = _data(call.tiny)
    width = 8 if call.tiny else 128
    network = ConvNet(3, CLASSES, width, 3, "relu", "instancenorm", "avgpooling", (32, 32))
    with torch.no_grad():
        for target, value in zip(network.parameters(), body.parameters(), strict=True):
            target.copy_(value)
    # It judges the student on a test set twice, in a run of so few epochs: here on one image.
    tests = DataLoader(TensorDataset(images[:1], labels[:1]))
    made: list[Tensor] = []

    class Watched(torch.optim.SGD):
        """Notes the weights when an optimiser is made: at the start and at the drop."""

        def __init__(self, parameters: Any, *positional: Any, **named: Any) -> None:
            held = list(parameters)
            made.append(torch.cat([p.detach().flatten() for p in held]))
            super().__init__(held, *positional, **named)

    def train(net: nn.Module, x: Tensor, y: Tensor, told: int) -> nn.Module:
        options = argparse.Namespace(
            device="cpu",
            lr_net=RATE,
            epoch_eval_train=told,
            optimizer="sgd",
            batch_train=256,
            eval_gap=1001,
            dsa=False,
            aug="",
            dc_aug_param=None,
        )
        before, torch.optim.SGD = torch.optim.SGD, Watched  # type: ignore[misc, assignment]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                trained: nn.Module
                trained, _, _ = EvaluatorUtils.evaluate_synset(
                    0, net, x, y, tests, options, logging.getLogger("peer")
                )
        finally:
            torch.optim.SGD = before  # type: ignore[misc]
        return trained

    small = ConvNet(3, CLASSES, 8, 3, "relu", "instancenorm", "avgpooling", (32, 32))
    train(small, images[:2], labels[:2], 1)
    made.clear()
    return Prepared(
        work=lambda: train(network, images, labels, epochs - 1),
        values=lambda trained: _values(trained, made[1], images, labels),
    )


def _ours(call: Call, epochs: int) -> Prepared:
    images, labels, body = _data(call.tiny)
    start = _flat(body).clone()

    def train(net: nn.Module, x: Tensor, y: Tensor, spec: StudentSpec) -> nn.Module:
        return train_student(
            nn.Sequential(nn.Identity(), net),
            DistilledSet(images=x, labels=y),
            spec,
            Seeds(0, "benchmark", "students"),
            0,
            flip=False,
            reporter=NullReporter(),
            compile=way(call.side).compile,
        ).network

    def values(trained: nn.Module) -> Values:
        again = convnet((3, 32, 32), CLASSES, width=8 if call.tiny else 128)
        torch.nn.utils.vector_to_parameters(start, again.parameters())
        early = train(again, images, labels, StudentSpec(epochs=drop(epochs), drop_at=1.0))
        return _values(trained, _flat(early), images, labels)

    spec = StudentSpec(epochs=epochs, drop_at=(drop(epochs) + 0.5) / epochs)
    train(convnet((3, 32, 32), CLASSES, width=8), images[:2], labels[:2], StudentSpec(epochs=1))
    return Prepared(work=lambda: train(body, images, labels, spec), values=values)


def _prepare(call: Call) -> Prepared:
    epochs = TINY_EPOCHS if call.tiny else EPOCHS
    return _peer(call, epochs) if call.side == PEER else _ours(call, epochs)


def _agree(side: str, theirs: list[Values], ours: list[Values]) -> list[Agreement]:
    a, b = ours[0], theirs[0]
    return [
        agreement(
            side, "weights when the rate drops, relative difference",
            relative(a["drop"], b["drop"]), CLOSE,
        ),
        agreement(
            side, "last weights, relative difference (the peer forgets its momentum)",
            relative(a["last"], b["last"]),
        ),
    ]  # fmt: skip


COMPARISONS = {
    "dcbench-students": Comparison(
        peer=REPOSITORY,
        text=f"a student, ConvNet-3 W=128, on 100 images of 3x32x32, {EPOCHS} epochs, "
        "no augmentation",
        driven="EvaluatorUtils.evaluate_synset and ConvNet, with one test image",
        prepare=_prepare,
        agreement=_agree,
        facts=lambda side, values: {f"last loss, {side}": values[0]["loss"]},
    )
}
