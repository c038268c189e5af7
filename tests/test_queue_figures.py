"""IDM and ROME beside the published code: figures of theirs that ours has to give."""

import json
from pathlib import Path

import pytest
import torch
from robustdd_idm.distiller import squared_distance
from robustdd_rome.distiller import half_l1_squared, towards_next_class
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.toolkit.adversarial import Adversary
from robustdd_bench.toolkit.queues.matching import QueueObjective, coasting, queue_gradient

FIGURES = json.loads((Path(__file__).parent / "data" / "queue_figures.json").read_text())
CLASSES, IPC, REAL, RATE, MOMENTUM = 10, 2, 5, 0.2, 0.5
CASES = [(name, index) for name in ("idm", "rome") for index in range(2)]


def wave(shape, a, b):
    return torch.sin(a * torch.arange(shape.numel(), dtype=torch.float64) + b).view(shape)


def network():
    body = convnet((3, 8, 8), CLASSES, depth=2, width=4).double()
    with torch.no_grad():
        for i, p in enumerate(body.parameters()):
            scale = 1.0 if p.ndim == 1 and i % 4 == 2 else 0.0
            p.copy_(0.4 * wave(p.shape, 1.7 + 0.1 * i, 0.3 * i) + scale)
    return body.requires_grad_(False).eval()


def objective_of(name, case):
    if name == "idm":
        return QueueObjective(
            distance=squared_distance, feature_weight=1.0, ce_weight=case["ce_weight"]
        )
    adversary = Adversary(
        threat=ThreatModel("Linf", 8 / 255), steps=10, step_size=2 / 225, random_start=False
    )
    return QueueObjective(
        distance=half_l1_squared,
        feature_weight=0.2,
        ce_weight=0.8 * case["ce_weight"],
        attack=towards_next_class(adversary, CLASSES, published=True),
    )


@pytest.mark.parametrize(("name", "index"), CASES)
def test_two_iterations_are_those_of_the_published_code(name, index):
    case = FIGURES[name][index]
    objective, layer, body = objective_of(name, case), nn.Identity(), network()
    size = torch.Size((REAL, 3, 8, 8))
    real = torch.cat([1.2 * wave(size, 0.9 + 0.05 * k, 0.2 * k) for k in range(CLASSES)])
    real_labels = torch.arange(CLASSES).repeat_interleave(REAL)
    if objective.attack is not None:
        real = objective.attack(layer, body, real, real_labels, torch.Generator())
    z = 1.1 * wave(torch.Size((CLASSES * IPC, 3, 8, 8)), 0.77, 0.5)
    labels = torch.arange(CLASSES).repeat_interleave(IPC)
    place = labels.view(-1, 1, 1, 1)
    velocity, losses, first = torch.zeros_like(z), [], None
    for _ in range(2):
        for step in ("before", "gradient", "after"):
            if step == "gradient":
                loss, gradient = queue_gradient(
                    layer,
                    body,
                    real,
                    [REAL] * CLASSES,
                    z,
                    labels,
                    objective,
                    torch.tensor(objective.ce_weight * case["accuracy"], dtype=torch.float64),
                    lambda x, sizes: x,
                    case["mosaic"],
                )
                losses.append(float(loss))
                first = gradient if first is None else first
                velocity = MOMENTUM * velocity + gradient
                z = z - RATE * velocity
            else:
                steps = place if step == "before" else CLASSES - 1 - place
                way, left = coasting(MOMENTUM, steps, z)
                z, velocity = z - RATE * way * velocity, left * velocity
    assert losses == pytest.approx(case["losses"], rel=1e-9)
    for found, said in ((first, case["gradient"]), (z, case["images"])):
        assert float(found.sum()) == pytest.approx(said["sum"], rel=1e-8)
        assert float(found.norm()) == pytest.approx(said["norm"], rel=1e-9)
        assert found.flatten()[::97].tolist() == pytest.approx(said["some"], rel=1e-7, abs=1e-10)
