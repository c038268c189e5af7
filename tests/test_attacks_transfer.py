"""Transfer: examples made on other students, tried on this one."""

from __future__ import annotations

import pytest
import torch
from attack_models import RowNetwork, make_attack, rng, task_of, trained_network
from small_runs import SUITE, plan_of, registry, run
from torch import nn

from robustdd_bench.attacks import ThreatModel
from robustdd_bench.config import build_config
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.prediction import classified
from robustdd_bench.evaluation.robustness import attack_student, attack_students
from robustdd_bench.evaluation.sanity.suite_checks import check_gradient_free
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.runs.cells import cells_of
from robustdd_bench.runs.context import RunContext
from robustdd_bench.seeds import ExampleGenerator

THREAT = ThreatModel("Linf", 0.1)


def transfer(**settings):
    kind = collect(get_plugin_manager()).get("attacks", "transfer").load()
    return kind(kind.Config(**settings))


def others(count=2):
    """The trained network with noise on its weights: siblings that are wrong elsewhere."""
    import copy

    found = []
    for r in range(count):
        network = copy.deepcopy(trained_network().model)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng(r)), alpha=0.05)
        found.append(network)
    return found


def test_what_it_finds_is_the_worst_of_pgd_on_each_source() -> None:
    networks = [RowNetwork(16, 4, seed=seed) for seed in (0, 1, 2)]
    images = torch.rand(20, 1, 4, 4, generator=rng(3), dtype=torch.float64)
    labels = networks[0](images).argmax(1)
    attack, threat = transfer(steps=5), ThreatModel("Linf", 0.3)
    index, sources = torch.arange(20), tuple(networks[1:])
    given = task_of(networks[0], images, labels, threat, ExampleGenerator(4, index), sources)
    found = attack.perturb(given).images
    generator = ExampleGenerator(4, index)
    made = [
        make_attack("pgd", steps=5)
        .perturb(task_of(source, images, labels, threat, generator))
        .images
        for source in sources
    ]
    wrong = torch.stack([networks[0](x).argmax(1) != labels for x in made])
    assert torch.equal(networks[0](found).argmax(1) != labels, wrong.any(0))
    assert int(wrong.any(0).sum()) > 0
    assert int(wrong.any(0).sum()) > int(wrong[0].sum())
    assert threat.distance(found, images).max() <= 0.3 + 1e-12
    assert found.min() >= 0
    assert found.max() <= 1


def test_it_needs_no_gradient_of_the_student() -> None:
    task = trained_network()

    class Masked(nn.Module):
        """Right as before, with no gradient at all."""

        def forward(self, x):
            return task.model(x.detach()) + 0 * x.sum()

    arguments = (task.images, task.labels)
    blind = attack_student(Masked(), *arguments, make_attack("pgd"), THREAT, 0, 64, name="pgd")
    found = attack_student(
        Masked(), *arguments, transfer(), THREAT, 0, 64, sources=[others()], name="transfer"
    )
    assert found.broken > blind.broken + 10
    clean = classified(task.model, *arguments, 64)
    assert not check_gradient_free([blind, found], clean, {"transfer"}).passed


def test_a_student_that_hides_nothing_falls_for_its_own_examples_first() -> None:
    task = trained_network()
    arguments = (task.model, task.images, task.labels)
    own = attack_student(*arguments, make_attack("pgd"), THREAT, 0, 64)
    lent = attack_student(*arguments, transfer(), THREAT, 0, 64, sources=[others()])
    assert 0 < lent.broken <= own.broken


def test_the_sources_are_lent_for_one_student_only() -> None:
    task = trained_network()
    seen = []
    attack = transfer(steps=1)
    inner = attack.perturb

    def spy(task):
        (lent,) = task.sources
        assert not lent.training
        assert not any(parameter.requires_grad for parameter in lent.parameters())
        seen.append(lent)
        return inner(task)

    attack.perturb = spy
    siblings = others()
    right = [torch.ones(len(task.labels), dtype=torch.bool)] * 2
    attack_students(
        siblings, task.images, task.labels, attack, THREAT, [0, 0], 200, right,
        sources=[[siblings[1]], [siblings[0]]],
    )  # fmt: skip
    for lent, sibling in zip(seen, reversed(siblings), strict=True):
        assert lent is not sibling, "it gets a copy"
        assert all(map(torch.equal, lent.parameters(), sibling.parameters()))


def test_without_other_students_it_says_so() -> None:
    task = trained_network()
    with pytest.raises(UsageError, match="transfer needs other students"):
        attack_student(task.model, task.images, task.labels, transfer(), THREAT, 0, 64)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"sources": 0}])
def test_nonsense_is_refused(settings) -> None:
    kind = collect(get_plugin_manager()).get("attacks", "transfer").load()
    with pytest.raises(UsageError, match="must be at least 1, not 0"):
        build_config(kind.Config, settings, "attack 'transfer'")


def test_a_run_attacks_each_student_with_examples_of_the_others(tmp_path) -> None:
    path = tmp_path / "suite.toml"
    text = '\n[[attacks]]\nname = "transfer"\non = "survivors"\nat = "headline"\n'
    # Trained for longer, so that examples of one student break the other.
    path.write_text(SUITE.read_text().replace("epochs = 30", "epochs = 60") + text)
    plan = plan_of(track=str(path))
    context = RunContext(plan, registry(), tmp_path, tmp_path)
    cells = {c.name: c for c in cells_of(context, "attacks")}
    needed = {p.name for p in cells["attacks/0/transfer"].inputs}
    assert {"student-0.safetensors", "student-1.safetensors"} <= needed
    record = run(plan, tmp_path).record
    results = [r for s in record.students for r in s.attacks if r.attack == "transfer"]
    assert len(results) == 2
    assert sum(r.broken for r in results) > 0
