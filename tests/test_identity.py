"""A field that is added later changes nothing that was made before it."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from small_runs import TRACK, example, plan_of, registry, with_means_of

from robustdd_bench.board.admission.duplicates import clashes
from robustdd_bench.board.standings import standings
from robustdd_bench.cli.main import cli
from robustdd_bench.config import all_settings, build_config, config_to_dict, recorded_config
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.identity import Added, added_fields, identity, identity_fields
from robustdd_bench.protocol.tracks import Track
from robustdd_bench.records import plan
from robustdd_bench.records import record as records
from robustdd_bench.records.plan import Plan, make_plan
from robustdd_bench.records.presets import DEFAULT_PRESET
from robustdd_bench.records.record import Record, make_record, read_record
from robustdd_bench.runs import reuse as reused
from robustdd_bench.runs.reuse import plan_again
from robustdd_bench.sweeps.estimate import History, estimate
from robustdd_bench.toolkit.trajectories.experts import ExpertRecipe

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "leaderboard" / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/*/*/record.json"))
METHODS = ("mat", "mtt")


@cache
def record_in(folder: Path) -> Record:
    return read_record(folder / "record.json")


def planned_again(record: Record) -> Plan:
    """The plan of a published record's own command, through what a user calls."""
    words = shlex.split(record.command_to_repeat)
    pairs = list(zip(words[2::2], words[3::2], strict=True))
    options = dict(pair for pair in pairs if pair[0] != "--set")
    assert words[:2] == ["robustdd", "run"]
    compiled = options.pop("--compile", "off")
    preset = options.pop("--preset", DEFAULT_PRESET)
    assert set(options) == {"--method", "--track", "--seed", "--device", "--threads"}
    if options["--device"] == "cuda":  # which device it was is not part of the identity
        options["--device"], compiled = "cpu", "off"
    return make_plan(
        registry(),
        method=options["--method"],
        track=options["--track"],
        assignments=[value for name, value in pairs if name == "--set"],
        preset=preset,
        seed=int(options["--seed"]),
        device=options["--device"],
        threads=int(options["--threads"]),
        compile=compiled,
    )


def here_and_there(made: Plan, record: Record) -> tuple[str, str]:
    """The run's id with the versions of the record, and its identity."""
    return with_means_of(made, record.plan()).run_id(), made.identity()


# Published records.


def test_there_are_published_records() -> None:
    assert len(FOLDERS) >= 90


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parts[-3]}-{f.parts[-2]}-{f.name}")
def test_the_command_of_a_published_record_plans_that_run(folder: Path) -> None:
    record = record_in(folder)
    made = planned_again(record)
    assert here_and_there(made, record) == (record.run_id, record.plan().identity())
    assert made.config == record.method.config
    assert folder.name == record.run_id


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parts[-3]}-{f.parts[-2]}-{f.name}")
def test_a_published_record_can_be_evaluated_again(folder: Path) -> None:
    record = record_in(folder)
    if record.method.reference:  # its set is the training split, which is not published
        with pytest.raises(UsageError, match="run it anew"):
            plan_again(registry(), folder, track=None)
        return
    made, found = plan_again(registry(), folder, track=None, device="cpu")
    assert found == record
    assert here_and_there(made, record) == (record.run_id, record.plan().identity())
    assert made.version == record.method.version


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_call_of_the_readme_evaluates_the_sets_of_all_seeds(seed: int) -> None:
    (folder,) = (
        f
        for f in FOLDERS
        if f.parts[-3:-1] == ("digits-ipc10", "mat") and record_in(f).seed == seed
    )
    call = ["evaluate", str(folder), "--track", "digits-ipc10-transfer-mlp", "--dry-run"]
    done = CliRunner().invoke(cli, [*call, "--device", "cpu", "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    there = {record_in(f).plan().identity() for f in FOLDERS if "transfer-mlp" in str(f)}
    made = Plan.from_dict(
        {k: v for k, v in found.items() if k not in ("run_id", "folder", "identity")}
    )
    assert done.exit_code == 0
    assert made.identity() in there


def test_every_command_under_the_tables_of_the_readme_is_that_of_a_published_run() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = text.partition("<!-- begin board -->")[2].partition("<!-- end board -->")[0]
    commands = re.findall(r"^robustdd run .*$", section, re.MULTILINE)
    published = {record_in(folder).command_to_repeat: record_in(folder) for folder in FOLDERS}
    assert len(commands) >= 30
    for command in commands:
        record = published[command]
        assert here_and_there(planned_again(record), record)[0] == record.run_id


# A field more, at run time.


def with_field(kind, name, default, added="9.0.0"):
    """The class with one more field, added in a later version."""
    namespace = {"ADDED": {name: added}, "__qualname__": kind.__qualname__}
    return dataclasses.make_dataclass(
        kind.__name__,
        [(name, type(default), field(default=default))],
        bases=(kind,),
        namespace=namespace,
        frozen=True,
        kw_only=True,
    )


@pytest.fixture
def wider(monkeypatch):
    """Every Config of the shipped trajectory methods, the plan and its attacks have a field more.

    So have tracks.
    """
    for name in METHODS:
        kind = registry().get("distillers", name).load()
        monkeypatch.setattr(kind, "Config", with_field(kind.Config, "novelty", 0.5))
    for attack in registry().names("attacks"):
        kind = registry().get("attacks", attack).load()
        monkeypatch.setattr(kind, "Config", with_field(kind.Config, "novelty", 0.5))
    wide = with_field(Plan, "fastness", "auto")
    for module in (plan, records, reused):
        monkeypatch.setattr(module, "Plan", wide)
    return wide


TRAJECTORIES = [f for f in FOLDERS if f.parts[-2] in METHODS]


def test_a_field_more_moves_no_published_run(wider) -> None:
    assert len(TRAJECTORIES) >= 18
    everybody = [read_record(folder / "record.json") for folder in FOLDERS]
    for folder in TRAJECTORIES:
        record = read_record(folder / "record.json")
        assert type(record.plan()) is wider
        made = planned_again(record)
        assert type(made) is wider
        assert here_and_there(made, record) == (record.run_id, record_in(folder).plan().identity())
        again, _ = plan_again(registry(), folder, track=None, device="cpu")
        assert here_and_there(again, record) == (record.run_id, made.identity())
        assert clashes(record, [r for r in everybody if r.run_id != record.run_id]) == []
    before = [(s.id, s.method, len(s.records)) for s in standings(map(record_in, FOLDERS))]
    assert [(s.id, s.method, len(s.records)) for s in standings(everybody)] == before
    cost = estimate(planned_again(record), History([RESULTS]), Path("nowhere"))
    assert cost is not None
    assert "settings" not in cost.differs


def test_another_value_of_the_field_moves_everything(wider) -> None:
    folder = next(f for f in TRAJECTORIES if f.parts[-3] == "digits-ipc10")
    record = read_record(folder / "record.json")
    made = planned_again(record)
    options = {"method": record.method.name, "track": record.track.name, "device": "cpu"}
    other = make_plan(registry(), assignments=["novelty=0.25"], **options)
    assert other.config == {**made.config, "novelty": 0.25}
    ids = {made.run_id(), other.run_id()}
    assert len(ids | {made.identity(), other.identity()}) == 4
    fast = dataclasses.replace(made, fastness="off")
    assert fast.run_id() not in ids
    assert fast.identity() != made.identity()
    assert wider.from_dict(json.loads(json.dumps(fast.to_dict()))) == fast
    assert fast.further() == {"fastness": "off"}
    cost = estimate(other, History([RESULTS]), Path("nowhere"))
    assert cost is not None
    assert "settings" in cost.differs


def test_a_field_said_at_its_default_is_no_other_run(wider) -> None:
    options = {"method": "mtt", "track": "digits-ipc10", "device": "cpu"}
    said = make_plan(registry(), assignments=["novelty=0.5"], **options)
    assert said.run_id() == make_plan(registry(), **options).run_id()
    assert "--set novelty=0.5" in said.command()  # a preset may say otherwise


def test_an_attack_with_another_value_is_another_suite(wider) -> None:
    text = TRACK.read_text(encoding="utf-8")
    assert "novelty" not in json.dumps(plan_of().to_dict()["attacks"])
    first = plan_of().track.attacks[0]
    told = first.model_copy(update={"config": {**first.config, "novelty": 0.25}})
    track = plan_of().track.model_copy(update={"attacks": (told, *plan_of().track.attacks[1:])})
    assert plan.plan_attacks(track, registry())[0].config["novelty"] == 0.25
    assert text == TRACK.read_text(encoding="utf-8")


class LaterTrack(Track):
    ADDED: ClassVar = {"colour": "9.0.0", "shades": "9.0.0"}
    colour: str = "grey"
    shades: list[int] = []  # noqa: RUF012


@pytest.mark.parametrize("folder", FOLDERS[::9], ids=lambda f: f.name)
def test_a_field_more_of_a_track_moves_its_hash_only_away_from_its_default(folder: Path) -> None:
    record = record_in(folder)
    fields = record.track.model_dump(mode="json")
    assert LaterTrack.model_validate(fields).sha256() == record.track_sha256
    assert LaterTrack.model_validate({**fields, "colour": "grey"}).sha256() == record.track_sha256
    assert LaterTrack.model_validate({**fields, "colour": "red"}).sha256() != record.track_sha256
    assert LaterTrack.model_validate({**fields, "shades": [1]}).sha256() != record.track_sha256


def test_a_field_more_of_a_recipe_leaves_stored_experts_where_they_are() -> None:
    wide = with_field(ExpertRecipe, "rotation", 0)
    assert (
        wide(epochs=3, learning_rate=0.1).description()
        == ExpertRecipe(epochs=3, learning_rate=0.1).description()
    )
    assert wide(epochs=3, learning_rate=0.1, rotation=90).description()["rotation"] == 90


# The rule.


@dataclass(frozen=True, kw_only=True)
class Inner:
    ADDED: ClassVar[Mapping[str, str]] = {"depth": "2.0"}
    width: int = 4
    depth: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    ADDED: ClassVar[Mapping[str, str | Added]] = {
        "inner": "1.1",
        "shaken": Added("1.2", was=False),
        "names": "1.2",
    }
    rate: float = 0.1
    inner: Inner = Inner()
    shaken: bool = True
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Further(Outer):
    ADDED: ClassVar[Mapping[str, str]] = {"speed": "1.3"}
    speed: float = 1.0


def test_a_later_field_is_left_out_at_its_default_and_kept_elsewhere() -> None:
    assert identity(Outer(shaken=False)) == {"rate": 0.1}
    assert identity(Outer(shaken=False, names=["a"])) == {"rate": 0.1, "names": ["a"]}
    assert identity(Outer(shaken=False, inner=Inner(width=5))) == {
        "rate": 0.1,
        "inner": {"width": 5},
    }
    assert identity(Outer(shaken=False, inner=Inner(depth=2)))["inner"] == {"width": 4, "depth": 2}


def test_a_subclass_adds_to_the_later_fields_of_its_bases() -> None:
    assert set(added_fields(Further)) == {"inner", "shaken", "names", "speed"}
    assert identity_fields(Further(shaken=False)) == {"rate": 0.1}


def test_where_a_default_changes_later_earlier_runs_keep_what_they_had() -> None:
    """What was made before the field was not shaken; a run of today is, and says so."""
    assert recorded_config(Outer, {"rate": 0.1}, "x") == Outer(shaken=False)
    assert config_to_dict(Outer()) == {"rate": 0.1, "shaken": True}
    assert recorded_config(Outer, config_to_dict(Outer()), "x") == Outer()
    assert recorded_config(Outer, config_to_dict(Outer(shaken=False)), "x") == Outer(shaken=False)


def test_all_settings_names_every_field() -> None:
    values = all_settings(Further())
    assert set(values) == {"rate", "inner", "shaken", "names", "speed"}
    assert (
        build_config(Further, {k: v for k, v in values.items() if k != "inner"}, "x") == Further()
    )


def test_a_truth_value_is_not_a_number() -> None:
    kind = with_field(Inner, "flag", False)
    assert "flag" in identity(kind(flag=0))


def config_with(added):
    return dataclasses.make_dataclass(
        "Config", [("a", int, 1)], frozen=True, namespace={"ADDED": added}
    )


@pytest.mark.parametrize(
    ("added", "line"),
    [
        (["a"], "must map the name of a field to the version"),
        (frozenset({"a"}), "must map the name of a field to the version"),
        ({"b": "1.0"}, "names 'b', which is no field of it"),
        ({"a": ""}, "must be the version in which the field came"),
        ({"a": 2}, "must be the version in which the field came"),
        ({"a": "soon"}, "must be the version in which the field came"),
    ],
)
def test_a_config_that_names_later_fields_wrongly_is_its_plugins_fault(added, line) -> None:
    with pytest.raises(PluginError, match=line):
        build_config(config_with(added), {}, "method 'x'")
    with pytest.raises(PluginError, match=line):
        recorded_config(config_with(added), {}, "method 'x'")


def test_a_later_field_needs_a_default() -> None:
    kind = dataclasses.make_dataclass("Config", ["a"], namespace={"ADDED": {"a": "1.0"}})
    with pytest.raises(PluginError, match="needs a default"):
        build_config(kind, {"a": 1}, "method 'x'")


def test_a_record_keeps_later_fields_of_its_plan(wider) -> None:
    record = example("random").record
    fast = dataclasses.replace(record.plan(), fastness="off")
    fields = {name: getattr(record, name) for name in Record.model_fields}
    fields |= {"further": fast.further(), "run_id": fast.run_id()}
    del fields["results_sha256"]
    kept = make_record(**fields)
    assert type(kept).model_validate_json(kept.model_dump_json()).plan() == dataclasses.replace(
        fast,
        preset=kept.plan().preset,
        overrides=kept.plan().overrides,
        track_source=kept.plan().track_source,
    )
    assert "further" not in record.model_dump()


def test_a_plan_with_fields_that_are_not_known_here_is_told(tmp_path) -> None:
    fields = json.loads((example("random").folder / "record.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps(fields | {"further": {"fastness": "off"}}))
    with pytest.raises(UsageError, match=r"does not know \(fastness\); install a newer version"):
        read_record(tmp_path / "record.json")
