"""Plans: what decides a result is in the run id, what does not is not; mistakes are told."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_runs import TRACK, plan_of, registry

from robustdd_bench.config import assignment, build_config, parse_assignments
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.plugins import Entry, PluginInfo, Registry
from robustdd_bench.protocol.tracks import Track
from robustdd_bench.records import plan as plan_module
from robustdd_bench.records.plan import Plan, make_plan, preset_values


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    word: str = "plain"
    maybe: float | None = None
    flag: bool = False
    share: float = 0.1
    many: tuple[int, ...] = (1, 2)
    table: dict[str, int] = dataclasses.field(default_factory=dict)


class Method:
    Config = Settings
    PRESETS: Path | None = None


def planned(monkeypatch: pytest.MonkeyPatch, presets: str | bytes | None, path: Path, **options):
    """A plan of `Method` with a file of presets."""
    if presets is not None:
        path.write_bytes(presets if isinstance(presets, bytes) else presets.encode())
    monkeypatch.setattr(Method, "PRESETS", None if presets is None else path)
    entry = Entry("distillers", "m", f"{__name__}:Method", "", "pluggy-m")
    found = registry()
    entries = {**found.entries, "distillers": {**found.entries["distillers"], "m": entry}}
    infos = {**found.plugins, "pluggy-m": PluginInfo("pluggy-m", "dist-m", "3.1", "", "loaded")}
    options = {"track": str(TRACK), "device": "cpu", "threads": 1} | options
    return make_plan(Registry(entries, infos), method="m", **options)


def changed(plan: Plan, path: list[str | int], value: Any) -> Plan:
    fields = json.loads(json.dumps(plan.to_dict()))
    inside = fields
    for key in path[:-1]:
        inside = inside[key]
    assert inside[path[-1]] != value
    inside[path[-1]] = value
    return Plan.from_dict(fields)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["method"], "mtt"),
        (["plugin"], "other"),
        (["distribution"], "other"),
        (["version"], "99"),
        (["config", "iterations"], 4),
        (["config", "alpha_init"], 0.0011),
        (["config", "init"], "noise"),
        (["track", "name"], "faster"),
        (["track", "version"], 2),
        (["track", "summary"], "another text"),
        (["track", "data", "ipc"], 3),
        (["track", "data", "options", "split_seed"], 1),
        (["track", "network", "options", "width"], 5),
        (["track", "preprocessing", "epsilon"], 0.2),
        (["track", "students", "count"], 3),
        (["track", "students", "weight_decay"], 0.0),
        (["track", "threat", "ladder"], [0.05, 0.1, 0.2]),
        (["track", "threat", "headline"], 0.05),
        (["attacks", 2, "config", "steps"], 3),
        (["attacks", 2, "version"], "99"),
        (["attacks", 0, "plugin"], "other"),
        (["seed"], 1),
        (["split"], "validation"),
        (["device"], "cuda"),
        (["threads"], 2),
        (["torch"], "1.0"),
        (["harness"], "99"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, list) else None,
)
def test_whatever_decides_the_result_is_in_the_run_id(path, value) -> None:
    plan = plan_of("mat")
    assert changed(plan, path, value).run_id() != plan.run_id()


def test_every_single_setting_of_the_method_is_in_the_run_id() -> None:
    plan = plan_of("mat")
    others = {changed(plan, ["config", key], "other").run_id() for key in plan.config}
    assert len(others | {plan.run_id()}) == len(plan.config) + 1 > 20


def test_what_a_thing_is_called_is_not_in_the_run_id(tmp_path) -> None:
    plan = plan_of("mat")
    assert changed(plan, ["preset"], "tuned").run_id() == plan.run_id()
    elsewhere = tmp_path / "copy.toml"
    elsewhere.write_bytes(TRACK.read_bytes())
    assert plan_of("mat", track=str(elsewhere)).run_id() == plan.run_id()
    assert plan.folder(Path("a")).relative_to("a") == plan.folder(Path("b")).relative_to("b")
    assert plan.folder(Path("a")) == Path("a") / "fast" / "mat" / plan.run_id()


def test_a_plan_survives_json() -> None:
    plan = plan_of("mat", seed=3, validate=True)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.run_id() == plan.run_id()
    assert (again.split, again.seed) == ("validation", 3)


def test_the_plan_says_which_versions_it_was_made_with() -> None:
    plan = plan_of("random")
    assert plan.torch == importlib.metadata.version("torch")
    assert (plan.plugin, plan.distribution) == ("coresets", "robustdd-bench")
    assert plan.version == importlib.metadata.version("robustdd-bench")
    assert [attack.name for attack in plan.attacks] == ["noise", "fgsm", "pgd"]
    assert plan.attacks[2].config["steps"] == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"method": "maat"}, r"unknown method 'maat'; did you mean 'mat'\?"),
        ({"track": "digits-ipc11"}, r"unknown track .*did you mean 'digits-ipc10?'\?"),
        ({"track": "nowhere.toml"}, r"no track file nowhere\.toml"),
        ({"assignments": ["iteration=3"]}, r"unknown key 'iteration'; did you mean 'iterations'\?"),
        ({"assignments": ["iterations=many"]}, r"method 'mat': iterations: .*not 'many'"),
        (
            {"assignments": ["iterations=-1"]},
            r"method 'mat': iterations must be at least 0, not -1",
        ),
        (
            {"assignments": ["flavour=pdg"]},
            r"method 'mat': flavour must be 'natural', 'pgd', .* not 'pdg'",
        ),
        ({"assignments": [f"iterations={10**12}"]}, r"iterations must be at most 10000000, not"),
        ({"assignments": [f"experts={10**7}"]}, r"method 'mat': experts must be at most 10000,"),
        ({"seed": 10**20}, r"--seed must be at most 9223372036854775807, not 1"),
        ({"assignments": ["iterations"]}, r"--set needs key=value, not 'iterations'"),
        ({"preset": "defaults"}, r"unknown preset 'defaults'; did you mean 'default'\?"),
        ({"device": "gpu"}, r"unknown device 'gpu'; did you mean 'cpu'\?"),
        ({"seed": -1}, r"--seed must not be negative, not -1"),
        ({"threads": -1}, r"--threads must lie in 0\.\."),
    ],
)
def test_a_wrong_call_is_one_line_with_a_suggestion(options, line) -> None:
    call = {"method": "mat", "track": str(TRACK), "device": "cpu"} | options
    with pytest.raises(UsageError, match=line) as caught:
        make_plan(registry(), **call)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_cuda_that_is_not_there_is_a_wrong_call(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device can be used here"):
        plan_of("random", device="cuda")
    assert plan_of("random", device="auto").device == "cpu"


@pytest.mark.parametrize("wrong", [{"device": "gpu"}, {"seed": -1}, {"assignments": ["x"]}])
def test_a_misspelt_option_is_told_before_the_method_is_imported(wrong, monkeypatch) -> None:
    def imported(self) -> None:
        raise AssertionError(f"{self.name} was imported")

    monkeypatch.setattr(Entry, "load", imported)
    with pytest.raises(UsageError):
        make_plan(registry(), method="mat", **wrong)


def test_a_track_with_an_unknown_part_is_told(tmp_path) -> None:
    path = tmp_path / "t.toml"
    for old, new, line in (
        ('"digits"', '"digitz"', "unknown dataset 'digitz'; did you mean 'digits'"),
        ('"convnet"', '"convnext"', "unknown network 'convnext'; did you mean 'convnet'"),
        ('"pgd"', '"pdg"', "unknown attack 'pdg'; did you mean"),
        ("steps = 2", "stepz = 2", "track 'fast', attack 'pgd': unknown key 'stepz'"),
    ):
        path.write_text(TRACK.read_text().replace(old, new))
        with pytest.raises(UsageError, match=line):
            plan_of("random", track=str(path))


PRESETS = """
[default.fast]
share = 0.2
word = "for the track"
[default.digits]
share = 0.3
[tuned.digits]
share = 0.4
[other.cifar10]
share = 0.5
"""


def test_a_preset_for_the_track_goes_before_one_for_the_dataset(monkeypatch, tmp_path) -> None:
    path = tmp_path / "presets.toml"
    assert planned(monkeypatch, PRESETS, path).config["share"] == 0.2
    renamed = tmp_path / "t.toml"
    renamed.write_text(TRACK.read_text().replace('name = "fast"', 'name = "slow"'))
    assert planned(monkeypatch, PRESETS, path, track=str(renamed)).config["share"] == 0.3
    tuned = planned(monkeypatch, PRESETS, path, preset="tuned")
    assert (tuned.config["share"], tuned.config["word"]) == (0.4, "plain")


def test_assignments_go_before_presets(monkeypatch, tmp_path) -> None:
    plan = planned(monkeypatch, PRESETS, tmp_path / "p", assignments=["share=0.9"])
    assert plan.config["share"] == 0.9
    assert plan.config["word"] == "for the track"


def test_without_presets_the_defaults_of_the_method_hold(monkeypatch, tmp_path) -> None:
    assert planned(monkeypatch, None, tmp_path / "p").config["share"] == 0.1
    assert planned(monkeypatch, "", tmp_path / "p").config["share"] == 0.1


def test_a_preset_that_has_nothing_for_the_track_is_not_passed_over(monkeypatch, tmp_path) -> None:
    line = "preset 'other' has no values for track 'fast'; it has them for cifar10"
    with pytest.raises(UsageError, match=line):
        planned(monkeypatch, PRESETS, tmp_path / "p", preset="other")


def test_a_track_has_its_bases_presets_where_it_has_none_of_its_own(monkeypatch, tmp_path) -> None:
    presets = PRESETS + "[default.other]\nshare = 0.6\n"
    path = tmp_path / "t.toml"

    def share(name, base):
        text = TRACK.read_text().replace("version = 1", f'version = 1\nbase = "{base}"')
        path.write_text(text.replace('name = "fast"', f'name = "{name}"'))
        plan = planned(monkeypatch, presets, tmp_path / "p", track=str(path))
        return plan.config["share"]

    assert share("fast-at", "other") == 0.6
    assert share("fast-at", "fast") == planned(monkeypatch, presets, tmp_path / "p").config["share"]
    assert share("fast", "other") == 0.2


@pytest.mark.parametrize(
    "presets",
    [
        "[default",
        b"\xff\xfe",
        "default = 3",
        "[default]\nfast = 3",
        "[default.fast]\nshaer = 0.1",
        "[default.fast]\nshare = 'much'",
    ],
)
def test_damaged_presets_name_the_plugin_and_not_the_user(monkeypatch, tmp_path, presets) -> None:
    with pytest.raises(PluginError, match=r"^plugin 'pluggy-m': .*preset") as caught:
        planned(monkeypatch, presets, tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_presets_names_the_plugin(tmp_path) -> None:
    class Lost:
        PRESETS = tmp_path / "lost.toml"

    track = Track.model_validate(plan_of("random").track.model_dump())
    with pytest.raises(PluginError, match="plugin 'p': cannot read its presets"):
        preset_values(Lost, "default", track, "p")


def test_a_method_without_settings_class_names_itself(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(Method, "Config", None)
    with pytest.raises(PluginError, match="method 'm' has no nested dataclass `Config`"):
        planned(monkeypatch, None, tmp_path / "p")


def parsed_command(monkeypatch, plan: Plan, again) -> Plan:
    words = shlex.split(plan.command())
    assert words[:2] == ["robustdd", "run"]
    options: dict[str, Any] = {"assignments": []}
    rest = iter(words[2:])
    for word in rest:
        if word == "--validate":
            options["validate"] = True
        elif word == "--set":
            options["assignments"].append(next(rest))
        else:
            options[word.removeprefix("--")] = next(rest)
    options["seed"], options["threads"] = int(options["seed"]), int(options["threads"])
    return again(options)


@pytest.mark.parametrize("method", ["random", "mat", "mtt"])
@pytest.mark.parametrize("validate", [False, True])
def test_the_command_of_a_plan_repeats_it(method, validate, monkeypatch) -> None:
    plan = plan_of(method, seed=7, validate=validate)
    monkeypatch.chdir(TRACK.parent)  # a track that is a file is named by its name alone
    again = parsed_command(monkeypatch, plan, lambda o: make_plan(registry(), **o))
    assert again.run_id() == plan.run_id()


NASTY = [
    "",
    "a b",
    " spaces ",
    "true",
    "1e3",
    "none",
    "quote \" and '",
    "$HOME `x` ; rm",
    "tab\tline\nbreak",
    "\x7f\x01",
    "naïve 図",
    "[1]",
    "2020-01-01",
    "a = 1",
    "# no comment",
]


@pytest.mark.parametrize("word", NASTY)
def test_any_text_survives_the_command_line(word, monkeypatch, tmp_path) -> None:
    text = assignment("word", word)
    (survived,) = shlex.split(shlex.join([text]))
    config = build_config(Settings, parse_assignments([survived]), "m")
    assert config.word == word


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("maybe", None),
        ("maybe", 1e-30),
        ("maybe", 1e300),
        ("share", -0.0),
        ("share", 0.1 + 0.2),
        ("flag", True),
        ("flag", False),
        ("many", []),
        ("many", [3, -4]),
        ("table", {"a b": 1, "c": 2}),
    ],
)
def test_any_value_survives_the_command_line(key, value) -> None:
    config = build_config(Settings, parse_assignments([assignment(key, value)]), "m")
    found = getattr(config, key)
    assert repr(list(found) if key == "many" else found) == repr(value)


def test_the_threads_of_the_machine_are_taken_where_none_are_asked_for(monkeypatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 13)
    assert plan_module.resolve_threads(0) == 13
    assert plan_module.resolve_threads(1) == 1


def test_settings_by_key_are_the_same_plan_as_the_texts_of_the_command_line() -> None:
    texts = make_plan(registry(), method="mat", assignments=["eps=0.05", "learn_labels=true"])
    values = make_plan(registry(), method="mat", assignments={"eps": 0.05, "learn_labels": True})
    assert values == texts
    with pytest.raises(UsageError, match="NaN and infinity are not accepted"):
        make_plan(registry(), method="mat", assignments={"eps": float("inf")})
