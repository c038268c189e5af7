import dataclasses
from typing import ClassVar

import pytest
import torch
from robustdd_mat.distiller import MAT
from robustdd_mtt.distiller import MTT
from tasks import RecordingReporter, digits_task
from torch import nn

from robustdd_bench.config import build_config
from robustdd_bench.errors import UsageError
from robustdd_bench.toolkit.fast.precision import PRECISIONS, precision
from robustdd_bench.toolkit.trajectories.experts import (
    ExpertRecipe,
    ExpertStore,
    family_seeds,
    train_expert,
)

CPU = torch.device("cpu")
RECIPE = ExpertRecipe(epochs=2, learning_rate=0.05, batch_size=32, augmentation="color_crop")
PGD = dataclasses.replace(RECIPE, flavour="pgd", eps=0.1, attack_steps=2, attack_step_size=0.05)
NEAR = 0.1
"""Distance of a trajectory's end in bfloat16 from that in float32, over the way from the start."""


def settings():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def snapshots(task, recipe, name="default"):
    recipe = dataclasses.replace(recipe, precision=name)
    return train_expert(task, recipe, family_seeds(task.seeds), 0, RecordingReporter()).snapshots


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("default", settings()),
        ("float32", (False, False)),
        ("tf32", (True, True)),
        ("bfloat16", (True, True)),
    ],
)
def test_torchs_settings_are_changed_within_and_back_afterwards_even_after_an_error(name, inside):
    before = settings()

    def fail():
        with precision(name, CPU):
            assert settings() == inside
            assert torch.is_autocast_enabled("cpu") == (name == "bfloat16")
            assert torch.is_autocast_cache_enabled() == (name == "default")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert settings() == before
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_autocast_cache_enabled()


def test_an_expert_that_diverges_leaves_the_settings_as_they_were(tmp_path):
    before = settings()
    wild = dataclasses.replace(RECIPE, learning_rate=1e30)
    with pytest.raises(Exception, match="diverged"):
        snapshots(digits_task(tmp_path), wild, "bfloat16")
    assert settings() == before
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("recipe", [RECIPE, PGD], ids=["natural", "pgd"])
def test_on_the_cpu_all_but_bfloat16_are_the_same_and_that_is_near(tmp_path, recipe):
    task = digits_task(tmp_path)
    plain = snapshots(task, recipe)
    for name in ("float32", "tf32"):
        assert torch.equal(snapshots(task, recipe, name), plain)
    half = snapshots(task, recipe, "bfloat16")
    assert half.dtype == torch.float32
    assert torch.equal(half[0], plain[0])
    away = (half[-1] - plain[-1]).norm() / (plain[-1] - plain[0]).norm()
    assert 0 < away < NEAR


class Spy(nn.Module):
    """Notes what comes in, and what gradient comes back."""

    seen: ClassVar[list[torch.dtype]] = []
    back: ClassVar[list[torch.dtype]] = []

    def forward(self, x):
        self.seen.append(x.dtype)
        if x.requires_grad:
            x.register_hook(lambda gradient: self.back.append(gradient.dtype))
        return x


@pytest.mark.parametrize("recipe", [RECIPE, PGD], ids=["natural", "pgd"])
def test_bfloat16_reaches_the_network_and_its_adversary(tmp_path, recipe):
    task = digits_task(tmp_path)

    def network(seed):
        layer, body = task.network(seed)
        return nn.Sequential(layer, nn.Sequential(body[0], Spy(), *body[1:]))

    spied = dataclasses.replace(task, network=network)
    found = {}
    for name in ("default", "bfloat16"):
        Spy.seen.clear()
        Spy.back.clear()
        snapshots(spied, dataclasses.replace(recipe, epochs=1), name)
        found[name] = set(Spy.seen), set(Spy.back)
    assert found["default"] == ({torch.float32}, {torch.float32})
    assert found["bfloat16"] == ({torch.bfloat16}, {torch.bfloat16})


def test_experts_of_another_precision_lie_elsewhere_and_the_default_where_it_was(tmp_path):
    task = digits_task(tmp_path)
    stores = [ExpertStore(task, dataclasses.replace(PGD, precision=name)) for name in PRECISIONS]
    assert len({store.folder for store in stores}) == len(PRECISIONS)
    assert stores[0].key == ExpertStore(task, PGD).key
    # What a stored trajectory of before is described by.
    assert "precision" not in PGD.canonical().description()
    assert {"flavour", "eps", "ema"} < set(PGD.description())
    assert stores[3].recipe.description()["precision"] == "bfloat16"


@pytest.mark.parametrize("method", [MTT, MAT])
def test_the_setting_reaches_the_recipe_and_a_wrong_one_is_told(tmp_path, method):
    config = build_config(method.Config, {"expert_precision": "bfloat16"}, "method")
    assert method(config).recipe(digits_task(tmp_path)).precision == "bfloat16"
    with pytest.raises(
        UsageError, match=r"expert_precision must be 'default', .*, not 'half'"
    ) as told:
        build_config(method.Config, {"expert_precision": "half"}, "method")
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="precision must be one of"):
        ExpertRecipe(epochs=1, learning_rate=0.1, precision="half")


def test_bfloat16_is_the_same_in_steps_that_are_replayed(tmp_path, monkeypatch):
    task = digits_task(tmp_path)
    eager = snapshots(task, PGD, "bfloat16")
    monkeypatch.setenv("ROBUSTDD_CAPTURE", "rehearse")
    assert torch.equal(snapshots(task, PGD, "bfloat16"), eager)
