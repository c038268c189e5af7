"""Our attacks end where those of torchattacks and pyautoattack did, on the same tensors.

The packages are not needed: `tests/data/attack-parity.json` holds what they gave.
"""

import json
from functools import cache

import pytest
import torch
from attack_parity import COUNT, FIGURES, LINF, STEPPED, fab_distances, inputs, last_point

from robustdd_bench.attacks import ThreatModel


@cache
def figures():
    return json.loads(FIGURES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", STEPPED)
def test_the_last_point_is_that_of_torchattacks(name):
    model, images, labels = inputs()
    theirs = torch.tensor(figures()["last_points"][name], dtype=torch.float64).view(images.shape)
    assert LINF.eps == figures()["eps"]
    assert (theirs - images).abs().amax() > 0.9 * LINF.eps
    same = torch.ones(COUNT, dtype=torch.bool)
    if name == "jitter":  # what is broken already goes another way, see its docstring
        same = model(theirs).argmax(1) == labels
        assert int(same.sum()) >= 6
    torch.testing.assert_close(last_point(name)[same], theirs[same], rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fab_finds_the_distances_of_pyautoattack(norm):
    # The package computes in float32, and a step may then fall on the other side of a boundary.
    theirs = torch.tensor(figures()["fab_distances"][norm], dtype=torch.float64)
    ours = fab_distances(norm)
    assert theirs.isfinite().all()
    assert len(theirs) == COUNT
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)


def test_the_points_lie_in_the_ball_and_differ_between_attacks():
    points = {name: last_point(name) for name in STEPPED}
    _, images, _ = inputs()
    for name, x in points.items():
        assert ThreatModel("Linf", LINF.eps).distance(x, images).max() <= LINF.eps + 1e-12, name
    names = sorted(points)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not torch.allclose(points[one], points[other], atol=1e-4), (one, other)
