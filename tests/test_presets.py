import tomllib

import pytest

from robustdd_bench.config import build_config
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.tracks import load_track
from robustdd_bench.runs.plan import preset_values

METHODS = ("mtt", "mat")
TRACKS = [f"cifar{k}-ipc{ipc}" for k in (10, 100) for ipc in (1, 10, 50)]


@pytest.fixture(scope="module")
def registry():
    return collect(get_plugin_manager())


def config(registry, method, preset, track):
    plugged = registry.get("distillers", method).load()
    values = preset_values(plugged, preset, load_track(track, registry), method)
    return build_config(plugged.Config, values, method)


@pytest.mark.parametrize("method", METHODS)
def test_every_table_of_every_preset_is_a_configuration(registry, method):
    plugged = registry.get("distillers", method).load()
    presets = tomllib.loads(plugged.PRESETS.read_text(encoding="utf-8"))
    assert {"default", "paper", "quick", "minutes"} <= set(presets)
    for tables in presets.values():
        for name, values in tables.items():
            build_config(plugged.Config, values, f"{method} {name}")


@pytest.mark.parametrize("method", METHODS)
def test_every_value_of_the_presets_paper_and_minutes_names_its_source(registry, method):
    plugged = registry.get("distillers", method).load()
    text = plugged.PRESETS.read_text(encoding="utf-8")
    lines = text[text.index("[paper.") :].partition("[quick.")[0].splitlines()
    lines += text[text.index("[minutes.") :].splitlines()
    values = [line for line in lines if "=" in line and not line.startswith("#")]
    assert len(values) > 50
    for line in values:
        source = line.partition("  # ")[2]
        assert any(word in source for word in ("paper", "mtt", "ours")), line


def test_mtts_paper_preset_is_the_papers_table(registry):
    # (N, M, T, batch, ZCA, image lr, alpha lr, alpha_0), Cazenavette et al. 2022
    table = {
        "cifar10-ipc1": (50, 2, 2, 0, True, 100, 1e-7, 0.01),
        "cifar10-ipc10": (30, 2, 20, 0, True, 100, 1e-5, 0.001),
        "cifar10-ipc50": (30, 2, 40, 0, False, 1000, 1e-5, 0.001),
        "cifar100-ipc1": (20, 3, 20, 0, True, 1000, 1e-5, 0.01),
        "cifar100-ipc10": (20, 2, 20, 0, False, 1000, 1e-5, 0.01),
        "cifar100-ipc50": (80, 2, 40, 125, True, 1000, 1e-5, 0.01),
    }
    assert list(table) == TRACKS
    for track, (steps, match, start, batch, zca, image_lr, alpha_lr, alpha) in table.items():
        c = config(registry, "mtt", "paper", track)
        assert (c.student_steps, c.match_epochs, c.start_epochs) == (steps, match, start)
        assert (c.student_batch, c.preprocessing == "zca") == (batch, zca)
        assert (c.image_lr, c.alpha_lr, c.alpha_init) == (image_lr, alpha_lr, alpha)
        assert (c.alpha_space, c.alpha_optimiser, c.alpha_momentum) == ("linear", "sgd", 0.5)
        assert (c.experts, c.expert_lr, c.expert_batch, c.iterations) == (100, 0.01, 256, 5000)
        assert (c.expert_momentum, c.expert_weight_decay) == (0, 0)
        assert (c.image_optimiser, c.image_momentum, c.init) == ("sgd", 0.5, "real")


@pytest.mark.parametrize("track", [*TRACKS, "cifar10-ipc5"])
def test_mat_matches_as_mtt_does(registry, track):
    mtt, mat = (config(registry, method, "paper", track) for method in METHODS)
    for field in mtt.__dataclass_fields__:
        assert getattr(mat, field) == getattr(mtt, field), field
    assert (mat.flavour, mat.ema) == ("pgd", 0.99)
    assert mat.eps == pytest.approx(1 / 255)


MINUTES = [f"cifar10-ipc{ipc}" for ipc in (1, 5, 10, 50)]


@pytest.mark.parametrize("track", MINUTES)
@pytest.mark.parametrize("method", METHODS)
def test_minutes_is_the_papers_preset_with_less_of_it(registry, method, track):
    paper, minutes = (config(registry, method, preset, track) for preset in ("paper", "minutes"))
    changed = {
        field
        for field in paper.__dataclass_fields__
        if getattr(paper, field) != getattr(minutes, field)
    }
    alpha = {"alpha_lr", "alpha_space", "alpha_optimiser"} if track == "cifar10-ipc1" else set()
    adversary = {"attack_steps", "attack_step_size"} if method == "mat" else set()
    assert changed == {"experts", "iterations"} | alpha | adversary
    assert minutes.experts < paper.experts
    assert minutes.iterations < paper.iterations


@pytest.mark.parametrize("track", MINUTES)
def test_in_minutes_mat_differs_from_mtt_in_its_experts_alone(registry, track):
    mtt, mat = (config(registry, method, "minutes", track) for method in METHODS)
    for field in mtt.__dataclass_fields__:
        assert getattr(mat, field) == getattr(mtt, field), field
    # The adversary can reach every corner of its ball from any start.
    assert mat.attack_steps * mat.attack_step_size >= 1


def test_other_numbers_of_images_have_the_data_sets_own_table(registry):
    five = config(registry, "mtt", "paper", "cifar10-ipc5")
    assert five == config(registry, "mtt", "paper", "cifar10-ipc10")
