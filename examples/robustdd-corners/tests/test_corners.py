from __future__ import annotations

import itertools

import pytest
import torch
from robustdd_corners.attack import Corners
from torch import Tensor

from robustdd_bench.attacks import AttackTask, ThreatModel
from robustdd_bench.conformance import check_attack
from robustdd_bench.errors import UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.seeds import ExampleGenerator

WEIGHTS = torch.tensor([[1.0, -2.0], [-3.0, 0.5], [0.5, 1.0]])


def _linear(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.flatten(1) @ WEIGHTS


def _attack(tries: int, threat: ThreatModel) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.tensor([[0.5, 0.4, 0.6], [0.3, 0.7, 0.5]]).view(2, 1, 1, 3)
    labels = torch.tensor([0, 1])
    task = AttackTask(
        model=_linear,
        images=images,
        labels=labels,
        threat=threat,
        generator=ExampleGenerator(0, torch.arange(2)),
    )
    found = Corners(Corners.Config(tries=tries)).perturb(task)
    return found.images, images, labels


def test_corners_is_installed_and_passes_the_checks_of_the_benchmark() -> None:
    entry = collect(get_plugin_manager()).get("attacks", "corners")
    assert entry.plugin == "corners"
    assert [finding for finding in check_attack(entry) if not finding.passed] == []


def test_with_enough_tries_it_finds_the_worst_of_all_corners() -> None:
    found, images, labels = _attack(200, ThreatModel("Linf", 0.1))
    corners = torch.tensor(list(itertools.product((-0.1, 0.1), repeat=3))).view(8, 1, 1, 1, 3)
    for i in range(2):
        losses = torch.nn.functional.cross_entropy(
            _linear((images[i] + corners[:, 0]).clamp(0, 1)), labels[i].repeat(8), reduction="none"
        )
        worst = (images[i] + corners[losses.argmax(), 0]).clamp(0, 1)
        torch.testing.assert_close(found[i], worst)


def test_more_tries_never_make_the_loss_smaller() -> None:
    losses = []
    for tries in (1, 2, 4, 8, 16):
        found, _, labels = _attack(tries, ThreatModel("Linf", 0.1))
        losses.append(torch.nn.functional.cross_entropy(_linear(found), labels, reduction="none"))
    for fewer, more in itertools.pairwise(losses):
        assert bool((more >= fewer).all())


@pytest.mark.parametrize("threat", [ThreatModel("L2", 0.1), ThreatModel("Linf", 0.1, True)])
def test_what_it_cannot_do_it_refuses(threat: ThreatModel) -> None:
    with pytest.raises(UsageError, match="needs the norm Linf and no targets"):
        _attack(1, threat)
