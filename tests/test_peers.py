import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PEERS = FOLDER / "peers"
OWN = (
    "attack_peers", "comparison", "compare", "dc_bench", "mtt", "peer_results", "variants",
)  # fmt: skip
THEIRS = ("networks", "reparam_module")


@pytest.fixture(scope="module")
def peers():
    """`peers("mtt")`: a module of benchmarks/peers."""
    before = list(sys.path)
    sys.path[:0] = [str(PEERS), str(FOLDER)]
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = before
        for name in (*OWN, *THEIRS):
            sys.modules.pop(name, None)


def committed():
    return {path.stem: path for path in (PEERS / "results").glob("*.json")}


def call(peers, side, tmp_path, peer=None, seed=0):
    kind = peers("comparison").Call
    return kind(side=side, peer=peer, seed=seed, store=tmp_path, tiny=True)


def values(comparison, asked):
    prepared = comparison.prepare(asked)
    return prepared.values(prepared.work())


def test_every_comparison_has_a_committed_result_and_no_result_lacks_a_comparison(peers):
    assert set(committed()) == set(peers("compare").comparisons())


@pytest.mark.parametrize("path", committed().values(), ids=list(committed()))
def test_committed_comparisons_say_what_was_measured_where_and_against_what(peers, path):
    result = peers("peer_results").PeerResult.model_validate_json(path.read_text("utf-8"))
    comparison = peers("compare").comparisons()[path.stem]
    assert (result.name, result.workload) == (path.stem, comparison.text)
    assert (result.peer.name, result.peer.driven) == (comparison.peer.name, comparison.driven)
    assert result.command.startswith(f"python benchmarks/peers/compare.py {path.stem}")
    assert result.ours[0].name == "ours"
    assert {"python", "torch", "robustdd-bench"} <= set(result.versions)
    assert any(found.at_most is not None for found in result.agreement)
    assert not (result.peer.commit or "").endswith("-changed")


def test_a_comparison_whose_ratio_or_agreement_was_edited_is_refused(peers):
    schema = peers("peer_results").PeerResult
    text = json.loads(committed()["dcbench-students"].read_text("utf-8"))
    schema.model_validate(text)
    ours = text["ours"][0]
    for key in ("times_as_fast", "times_as_fast_cpu", "memory_ratio"):
        edited = text | {"ours": [ours | {key: ours[key] + 1}]}
        with pytest.raises(ValueError, match=f"{key} does not follow"):
            schema.model_validate(edited)
    first = text["agreement"][0]
    edited = text | {"agreement": [first | {"value": first["at_most"] * 2, "agrees": True}]}
    with pytest.raises(ValueError, match="does not follow from value and limit"):
        schema.model_validate(edited)
    with pytest.raises(ValueError, match="version of a package or the commit"):
        schema.model_validate(text | {"peer": text["peer"] | {"commit": None}})


def script(*words):
    command = [sys.executable, str(PEERS / "compare.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_missing_peer_is_one_line_that_says_what_to_fetch(peers, tmp_path):
    done = script("mtt", "--peer", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"error: no reparam_module.py under {tmp_path}, so this is not mtt-distillation: git clone "
        "https://github.com/GeorgeCazenavette/mtt-distillation FOLDER, then call with --peer FOLDER"
    ]
    comparison = peers("comparison")
    with pytest.raises(comparison.PeerMissingError, match=r"git clone .*dc_benchmark FOLDER"):
        peers("dc_bench").REPOSITORY.check(None)
    package = comparison.Package(name="no_such_peer", url="https://example.org")
    with pytest.raises(comparison.PeerMissingError, match="pip install no_such_peer"):
        package.check(None)


def test_a_fetched_peer_is_known_by_its_commit_and_whether_it_was_changed(peers, tmp_path):
    comparison = peers("comparison")
    repository = comparison.Repository(name="p", url="https://example.org/p", files=("a.py",))
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(comparison.PeerMissingError, match="is no git clone"):
        repository.identity(tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q"], ["add", "a.py"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = repository.identity(tmp_path)["commit"]
    assert len(clean) == 40
    (tmp_path / "a.py").write_text("x = 2\n")
    assert repository.identity(tmp_path) == {"commit": f"{clean}-changed"}


# Stands in for the public code: the same two classes, written with torch.func.
NETWORKS = """
from torch import nn

class ConvNet(nn.Sequential):
    def __init__(self, channel, classes, width, depth, act, norm, pooling, size):
        layers = []
        for _ in range(depth):
            layers += [nn.Conv2d(channel, width, 3, padding=1), nn.GroupNorm(width, width)]
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
            channel = width
        last = nn.Linear(width * (size[0] >> depth) ** 2, classes)
        super().__init__(*layers, nn.Flatten(), last)
"""
REPARAM = """
from torch import nn
from torch.func import functional_call

class ReparamModule(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, flat_param):
        shapes = {name: p.shape for name, p in self.module.named_parameters()}
        parts = flat_param.split([shape.numel() for shape in shapes.values()])
        values = {n: part.view(s) for (n, s), part in zip(shapes.items(), parts)}
        return functional_call(self.module, values, (x,))
"""


def test_the_stated_loop_of_trajectory_matching_has_the_gradient_of_the_engine(peers, tmp_path):
    (tmp_path / "networks.py").write_text(NETWORKS)
    (tmp_path / "reparam_module.py").write_text(REPARAM)
    comparison = peers("mtt").COMPARISONS["mtt-w64-b50-n30"]
    theirs = values(comparison, call(peers, "peer", tmp_path, tmp_path))
    ours = values(comparison, call(peers, "ours", tmp_path))
    found = comparison.agreement("ours", [theirs], [ours])
    assert all(entry.agrees for entry in found)
    assert ours["images"].abs().max() > 0
    wrong = ours | {"images in float64": ours["images in float64"] * 1.001}
    judged = comparison.agreement("ours", [theirs], [wrong])
    assert [entry.agrees for entry in judged].count(False) == 1


def test_dc_benchs_drop_of_the_rate_is_where_its_loop_has_it(peers):
    drop = peers("dc_bench").drop
    for told in range(1, 40):  # what its option says; it makes one epoch more
        marks = [epoch for epoch in range(told + 1) if epoch in [told // 2 + 1]]
        assert drop(told + 1) == marks[0] + 1


def test_pyautoattack_and_our_suite_are_given_the_same_students_and_examples(peers, tmp_path):
    comparison = peers("attack_peers").COMPARISONS["pyautoattack-digits"]
    theirs = [values(comparison, call(peers, "peer", tmp_path, seed=s)) for s in range(3)]
    ours = [values(comparison, call(peers, "ours", tmp_path, seed=s)) for s in range(3)]
    assert torch.equal(theirs[0]["clean"], ours[0]["clean"])
    for found in (*theirs, *ours):
        assert not (found["robust"] & ~found["clean"]).any()
    judged = comparison.agreement("ours", theirs, ours)
    assert [entry.agrees for entry in judged] == [True, None]


def test_the_last_iterate_of_our_pgd_is_what_is_compared(peers, tmp_path):
    comparison = peers("attack_peers").COMPARISONS["torchattacks-pgd-digits"]
    ours = values(comparison, call(peers, "ours", tmp_path))
    module = peers("attack_peers")
    images, labels = module.blobs(module.TINY, 20, 2)
    x = images.clone()
    network = module.students(call(peers, "ours", tmp_path), module.TINY)[0]
    for _ in range(module.STEPS):  # torchattacks' steps, in our words
        x.requires_grad_()
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        (slope,) = torch.autograd.grad(loss, x)
        x = x.detach() + module.TINY.eps / 4 * slope.sign()
        x = (images + (x - images).clamp(-module.TINY.eps, module.TINY.eps)).clamp(0, 1)
    assert (ours["last"][0] - x).abs().max() < 1e-6


def test_the_summary_says_a_loss_as_plainly_as_a_win(peers):
    schema = peers("peer_results").PeerResult
    result = schema.model_validate_json(committed()["dcbench-students"].read_text("utf-8"))
    slow = result.ours[0].model_copy(update={"times_as_fast_cpu": 0.5})
    bad = result.agreement[0].model_copy(update={"agrees": False})
    changed = result.model_copy(update={"ours": [slow], "agreement": [bad]})
    text = peers("compare").summary(changed)
    assert "0.50 times as fast as dc_benchmark" in text
    assert "DIFFERS" in text
