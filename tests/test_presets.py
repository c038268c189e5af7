import tomllib
from types import SimpleNamespace

import pytest

from robustdd_bench.config import build_config
from robustdd_bench.errors import UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.protocol.imagenet import classes
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import load_track
from robustdd_bench.records.plan import make_plan, preset_values
from robustdd_bench.sweeps import presets

METHODS = ("mtt", "mat")
NAMED = {"mtt": "paper", "mat": "field"}
"""The preset with the authors' matching, which MAT borrows."""
TRACKS = [f"cifar{k}-ipc{ipc}" for k in (10, 100) for ipc in (1, 10, 50)]
TINY = ["tiny-imagenet-ipc1", "tiny-imagenet-ipc10"]
SUBSETS = [f"{name}-ipc{ipc}" for name in classes.SUBSETS for ipc in (1, 10)]


@pytest.fixture(scope="module")
def registry():
    return collect(get_plugin_manager())


def config(registry, method, preset, track):
    plugged = registry.get("distillers", method).load()
    values = preset_values(plugged, preset, load_track(track, registry), method)
    return build_config(plugged.Config, values, method)


def factor(registry, track):
    """What turns the authors' learning rate of images into ours: the mean of (std / std')^2."""
    layer = load_track(track, registry).preprocessing
    assert layer.kind == "normalise"
    theirs = (0.2023, 0.1994, 0.2010)  # of CIFAR-10 and CIFAR-100 alike
    return sum((a / b) ** 2 for a, b in zip(theirs, layer.std, strict=True)) / 3


@pytest.mark.parametrize("method", METHODS)
def test_every_table_of_every_preset_is_a_configuration(registry, method):
    plugged = registry.get("distillers", method).load()
    presets = tomllib.loads(plugged.PRESETS.read_text(encoding="utf-8"))
    assert {"default", NAMED[method], "quick", "minutes", "full-data"} == set(presets)
    for tables in presets.values():
        for name, values in tables.items():
            build_config(plugged.Config, values, f"{method} {name}")


@pytest.mark.parametrize("method", METHODS)
def test_every_value_of_the_presets_paper_and_minutes_names_its_source(registry, method):
    plugged = registry.get("distillers", method).load()
    text = plugged.PRESETS.read_text(encoding="utf-8")
    lines = text[text.index(f"[{NAMED[method]}.") :].partition("[quick.")[0].splitlines()
    lines += text[text.index("[minutes.") :].splitlines()
    values = [line for line in lines if "=" in line and not line.startswith("#")]
    assert len(values) > 50
    for line in values:
        source = line.partition("  # ")[2]
        assert any(word in source for word in ("paper", "mtt", "ours")), line


def test_mtts_paper_preset_is_the_papers_table(registry):
    # (N, M, T, batch, ZCA, image lr, alpha lr, alpha_0), Cazenavette et al. 2022; the image lr is
    # converted to the track's normalisation where there is no ZCA.
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
        rate = image_lr if zca else round(image_lr * factor(registry, track), 0)
        assert (c.image_lr, c.alpha_lr, c.alpha_init) == (rate, alpha_lr, alpha)
        assert (c.alpha_space, c.alpha_optimiser, c.alpha_momentum) == ("linear", "sgd", 0.5)
        assert (c.experts, c.expert_lr, c.expert_batch, c.iterations) == (100, 0.01, 256, 5000)
        assert (c.expert_momentum, c.expert_weight_decay) == (0, 0)
        assert (c.image_optimiser, c.image_momentum, c.init) == ("sgd", 0.5, "real")


def test_mtts_paper_preset_has_the_authors_settings_for_images_of_imagenet(registry):
    """(N, T, batch, image lr, alpha lr): their table; for subsets, issue 1 of their repository."""
    table = {
        "tiny-imagenet-ipc1": (10, 10, 0, 1e4, 1e-4),
        "tiny-imagenet-ipc10": (20, 40, 200, 1e4, 1e-4),
    }
    table |= {track: (20, 10, 20 * track.endswith("-ipc10"), 1e5, 1e-6) for track in SUBSETS}
    assert list(table) == [*TINY, *SUBSETS]
    for track, (steps, start, batch, image_lr, alpha_lr) in table.items():
        c = config(registry, "mtt", "paper", track)
        assert (c.student_steps, c.match_epochs, c.start_epochs) == (steps, 2, start)
        assert (c.student_batch, c.preprocessing) == (batch, "track")
        assert (c.image_lr, c.alpha_lr, c.alpha_init) == (image_lr, alpha_lr, 0.01)
        assert (c.alpha_space, c.alpha_optimiser, c.alpha_momentum) == ("linear", "sgd", 0.5)
        assert (c.experts, c.iterations, c.image_momentum) == (100, 5000, 0.5)


def test_those_rates_need_no_conversion(registry):
    for track in [*TINY, *SUBSETS]:
        layer = load_track(track, registry).preprocessing
        assert (layer.mean, layer.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_more_special_table_goes_first(registry):
    """DATM has settings for ImageNette alone, FTD the same for every subset."""
    datm = config(registry, "datm", "paper", "imagenette-ipc10")
    assert (datm.student_steps, datm.image_lr, datm.loss_limit) == (40, 1e5, 2.0)
    with pytest.raises(UsageError, match="no values for track 'imagewoof-ipc10'; it has them for"):
        config(registry, "datm", "paper", "imagewoof-ipc10")
    found = [config(registry, "ftd", "paper", track) for track in SUBSETS]
    assert found[0] != found[1]
    assert found == found[:2] * 6
    assert [c.student_batch for c in found[:2]] == [0, 64]
    assert {(c.image_lr, c.alpha_lr, c.rho, c.gsam_alpha, c.image_ema) for c in found} == {
        (1e4, 1e-4, 0.01, 1.0, 0.999)
    }
    quick = {config(registry, "mtt", "quick", track) for track in SUBSETS}
    assert len(quick) == 1


@pytest.mark.parametrize("track", [*TRACKS, "cifar10-ipc5", *TINY, *SUBSETS])
def test_mat_matches_as_mtt_does(registry, track):
    mtt, mat = (config(registry, method, NAMED[method], track) for method in METHODS)
    for field in mtt.__dataclass_fields__:
        assert getattr(mat, field) == getattr(mtt, field), field
    assert (mat.flavour, mat.ema) == ("pgd", 0.99)
    assert mat.eps == pytest.approx(1 / 255)


MINUTES = [f"cifar10-ipc{ipc}" for ipc in (1, 5, 10, 50)]


@pytest.mark.parametrize("track", MINUTES)
@pytest.mark.parametrize("method", METHODS)
def test_minutes_is_the_papers_preset_with_less_of_it(registry, method, track):
    paper, minutes = (
        config(registry, method, preset, track) for preset in (NAMED[method], "minutes")
    )
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


PRINTED = {"dc": 0.1, "dsa": 0.1, "dm": 1.0, "idm": 0.2, "rome": 0.2}


@pytest.mark.parametrize("track", [*TRACKS, "cifar10-ipc5"])
@pytest.mark.parametrize("method", PRINTED)
def test_the_papers_learning_rate_of_images_is_converted(registry, method, track):
    found = config(registry, method, "paper", track).lr_img
    assert found == pytest.approx(PRINTED[method] * factor(registry, track), rel=1e-3)
    # The defaults are the figures as printed.
    assert registry.get("distillers", method).load().Config().lr_img == PRINTED[method]


def test_the_factor_gives_the_same_step_in_pixels(registry):
    """z = (x - mean) / std: dL/dz = std dL/dx and dx = std dz, so a step is lr std^2 dL/dx."""
    gradient = 1.7
    for track, times in (("cifar10-ipc10", 1.553), ("cifar100-ipc10", 1.757)):
        ours = load_track(track, registry).preprocessing.std
        theirs = sum((1000 * a**2) * gradient for a in (0.2023, 0.1994, 0.2010)) / 3
        plain = sum((1000 * b**2) * gradient for b in ours) / 3
        made = sum((1000 * factor(registry, track) * b**2) * gradient for b in ours) / 3
        assert made == pytest.approx(theirs, rel=0.01)
        assert plain / theirs == pytest.approx(times, rel=0.01)


@pytest.mark.parametrize("track", [*TRACKS, "cifar10-ipc5"])
def test_mats_former_preset_name_gives_the_same_configuration(registry, track):
    assert config(registry, "mat", "paper", track) == config(registry, "mat", "field", track)


def test_a_command_with_the_former_name_is_planned_and_recorded_under_the_new_one(registry):
    plans = [
        make_plan(registry, method="mat", track="cifar10-ipc10", preset=name, device="cpu")
        for name in ("paper", "field")
    ]
    assert plans[0] == plans[1]
    assert plans[0].preset == "field"
    assert "--preset field" in plans[0].command()
    with pytest.raises(UsageError, match="unknown preset 'papers'"):
        make_plan(registry, method="mat", track="cifar10-ipc10", preset="papers", device="cpu")


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({}, "normalise", True),
        ({}, "none", True),
        ({}, "zca", False),
        ({"image_lr": 644.0}, "normalise", False),
        ({"image_optimiser": "adam"}, "normalise", False),
    ],
)
def test_the_default_rate_behind_another_preprocessing_is_told(registry, settings, kind, said):
    task = SimpleNamespace(preprocessing=Preprocessing(kind, (0.5,), (0.5,)))
    for method in METHODS:
        made = registry.get("distillers", method).load().Config(**settings)
        line = made.hybrid(task)
        assert (line is not None) is said
        assert line is None or "image_lr 100" in line


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("track", [*TRACKS, *TINY, *SUBSETS])
def test_no_preset_of_a_paper_is_a_hybrid(registry, method, track):
    made = config(registry, method, NAMED[method], track)
    kind = "zca" if made.preprocessing == "zca" else "normalise"
    task = SimpleNamespace(preprocessing=Preprocessing(kind, (0.5,), (0.5,)))
    assert made.hybrid(task) is None


def test_the_methods_own_defaults_are_listed_last_whatever_its_file_holds(registry, monkeypatch):
    found = [("default", ()), ("quick", ("digits",))]
    monkeypatch.setattr(presets, "preset_tables", lambda distiller, plugin: dict(found))
    one, last = presets.preset_costs(registry, "random", "cpu")
    assert (one.preset, one.tracks, one.example) == ("quick", "digits", "digits-ipc1")
    assert (last.preset, last.tracks, last.cost) == ("default", "", None)
