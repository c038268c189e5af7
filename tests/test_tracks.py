"""Tracks: every embedded protocol loads, and an ill-formed one names file, key and reason."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from robustdd_bench.errors import UsageError
from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.protocol.imagenet.classes import SUBSETS
from robustdd_bench.protocol.tracks import (
    AdversarialSpec,
    MixSpec,
    NetworkSpec,
    TeachingSpec,
    Track,
    eps_label,
    load_track,
    parse_eps,
    parse_track,
    read_track_text,
    source_name,
)
from robustdd_bench.records.plan import make_plan

REGISTRY = collect(get_plugin_manager(entry_points=False))
NAMES = REGISTRY.names("tracks")
SUBSET_TRACKS = [f"{name}-ipc{ipc}" for name in SUBSETS for ipc in (1, 10)]

GOOD = """
name = "t"
version = 1
summary = "s"
[data]
dataset = "digits"
ipc = 1
[students]
epochs = 10
[threat]
ladder = [0.1, "51/255"]
headline = 0.1
[[attacks]]
name = "pgd"
"""


def variant_of(name: str) -> str:
    """What follows the number of images in a track's name, such as "at"."""
    return name.partition("-ipc")[2].partition("-")[2]


@pytest.mark.parametrize("name", NAMES)
def test_each_embedded_track_loads_under_its_registered_name(name: str) -> None:
    track = load_track(name, REGISTRY)
    assert track.name == name
    assert track.id == f"{name}@{track.version}"
    assert track.threat.headline in track.threat.ladder
    assert track.data.dataset in REGISTRY.entries["datasets"]
    assert track.network.name in REGISTRY.entries["networks"]


@pytest.mark.parametrize("name", NAMES)
def test_the_registered_summary_is_that_of_the_file_and_says_what_the_track_is(name: str) -> None:
    track = load_track(name, REGISTRY)
    assert REGISTRY.get("tracks", name).summary == track.summary
    images = "1 image" if track.data.ipc == 1 else f"{track.data.ipc} images"
    assert f"{images} per class" in track.summary
    dataset = {"digits": "digits 8x8", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
    dataset |= {name: subset.title for name, subset in SUBSETS.items()}
    dataset["tiny-imagenet"] = "Tiny ImageNet"
    variant = variant_of(name)
    assert track.summary.split(",")[0] == dataset[track.data.dataset]
    assert name.partition("-ipc")[2].split("-")[0] == str(track.data.ipc)
    if variant.startswith("transfer-"):
        assert track.student_network is not None
        assert variant == f"transfer-{track.student_network.name}"
        students = track.summary.partition(" for the method, ")[2].partition(" for the students")
        assert variant == f"transfer-{students[0].lower()}"
    elif variant == "teacher":
        assert track.students.teaching is not None
        assert "labels by a teacher" in track.summary
    elif variant:
        assert track.students.adversarial is not None
        title = {"pgd": "PGD-AT", "trades": "TRADES"}[track.students.adversarial.flavour]
        assert variant == {"PGD-AT": "at", "TRADES": "trades"}[title]
        assert f"students by {title}" in track.summary
    if track.data.dataset == "cifar10":
        share = f"{track.data.ipc * 10 / 50_000:.2%}".rstrip("0%").rstrip(".")
        assert f"{share} % of the data" in track.summary


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("digits")])
def test_tracks_of_photographs_measure_at_1_2_4_8_over_255(name: str) -> None:
    threat = load_track(name, REGISTRY).threat
    assert threat.ladder == (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    assert (threat.norm, threat.headline) == ("Linf", 2 / 255)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cifar10-small")])
def test_small_tracks_of_cifar_10_have_all_training_images_and_200_test_images_a_class(
    name: str,
) -> None:
    track = load_track(name, REGISTRY)
    assert track.data.options == {"test_per_class": 200}
    assert round(track.data.validation_fraction * 5000) == 200
    assert track.network.options == {"depth": 3, "width": 32}
    assert (track.ranked_seeds, track.seed_scheme) == (5, 2)
    ladder = [attack.name for attack in track.attacks if attack.at == "ladder"]
    assert ladder == ["noise", "fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t"]
    students = track.students.adversarial
    if students is not None:  # from its random start it reaches every corner of the ball
        assert students.steps * students.relative_step >= 2.5


@pytest.mark.parametrize("name", [f"tiny-imagenet-ipc{n}" for n in (1, 10)] + SUBSET_TRACKS)
def test_tracks_of_imagenet_have_the_fields_network_statistics_and_share_of_images(
    name: str,
) -> None:
    track = load_track(name, REGISTRY)
    tiny = track.data.dataset == "tiny-imagenet"
    assert track.network.options == {"depth": 4 if tiny else 5, "width": 128}
    assert track.preprocessing.std == (0.229, 0.224, 0.225)
    assert track.data.options == ({} if tiny else {"fit": "stretch"})
    assert (track.version, track.seed_scheme, track.base) == (1, 2, "")
    share = f"{track.data.ipc / (500 if tiny else 1300):.1g}"  # of most subsets
    assert f"({float(share) * 100:g} % of the data)" in track.summary


def test_every_subset_has_the_same_two_tracks_but_for_its_name() -> None:
    assert [name for name in NAMES if name.startswith("image")] == sorted(SUBSET_TRACKS)
    rest = []
    for name in SUBSET_TRACKS:
        fields = load_track(name, REGISTRY).model_dump()
        assert fields["data"].pop("dataset") == name.partition("-")[0]
        del fields["name"], fields["summary"], fields["data"]["ipc"]
        rest.append(fields)
    assert len(rest) == 12
    assert all(fields == rest[0] for fields in rest)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("digits")])
def test_digits_are_never_mirrored(name: str) -> None:
    track = load_track(name, REGISTRY)
    assert not track.data.flip
    assert "flip" not in track.students.augmentation


def test_tracks_of_one_dataset_differ_only_in_ipc_and_in_its_name() -> None:
    for family in ("digits", "cifar10", "cifar10-small", "cifar100", "tiny-imagenet", *SUBSETS):
        rest = []
        for name in NAMES:
            if name.startswith(f"{family}-ipc") and not variant_of(name):
                fields = load_track(name, REGISTRY).model_dump()
                del fields["name"], fields["summary"], fields["data"]["ipc"]
                rest.append(fields)
        assert len(rest) > 1
        assert all(fields == rest[0] for fields in rest)


@pytest.mark.parametrize("name", [name for name in NAMES if variant_of(name)])
def test_a_variant_differs_from_its_track_only_in_its_students(name: str) -> None:
    track = load_track(name, REGISTRY)
    base = load_track(name.removesuffix(f"-{variant_of(name)}"), REGISTRY)
    variant, plain = track.model_dump(), base.model_dump()
    for fields in (variant, plain):
        del fields["name"], fields["summary"]
    if "student_network" in variant:
        changed = variant.pop("student_network")
        assert variant["students"].pop("own_rate") is False
        for key in ("learning_rate", "epochs"):  # each architecture has its own
            plain["students"][key] = variant["students"][key]
    elif track.students.teaching is not None:
        kept = {"count", "batch_size", "augmentation"}  # the rest is the field's recipe
        assert track.students.mix is not None
        assert not track.students.own_rate
        for students in (variant["students"], plain["students"]):
            for key in students.keys() - kept:
                del students[key]
        changed = {"name": "convnet"}
    else:
        changed = variant["students"].pop("adversarial")
    assert variant.pop("base") == base.name == track.family
    assert variant == plain
    if track.students.adversarial is not None:
        assert changed["eps"] == base.threat.headline
    else:
        assert changed["name"] in REGISTRY.entries["networks"]


FIRST_HASHES = {
    "cifar10-ipc1": "5c479efc438ecfa0f5f487807fcb1cfd686d9dfe05fe7169ea29f2b810f4bf58",
    "cifar100-ipc50": "2585b7aeff253246f32623177f0bd45ca67793391ed531a3ed13226d83647cb8",
    "digits-ipc1": "6f86e68256c71241baa5b8f3e51acd52941b953a00af54d3480bf262ad681688",
    "digits-ipc10": "38968bc1090606ed8eb6e83a0fee0f977258501edb58e467cd80e180e6e099b3",
}


@pytest.mark.parametrize("name", FIRST_HASHES)
def test_fields_added_since_leave_the_hashes_of_the_first_tracks_alone(name: str) -> None:
    # Version 1 as it was, written without any field that is younger than it.
    fields = load_track(name, REGISTRY).model_dump(mode="json")
    first = ({"name": "noise"}, {"name": "fgsm"}, {"name": "pgd", "config": {"steps": 20}})
    fields |= {"version": 1, "attacks": first}
    assert Track.model_validate(fields).sha256() == FIRST_HASHES[name]


def test_added_fields_are_written_where_they_are_set_and_only_there() -> None:
    text = GOOD + "[student_network]\nname = 'mlp'\n[students.adversarial]\neps = '8/255'\n"
    plain, other = parse_track(GOOD, "a"), parse_track(text, "b")
    for mode in ("json", "python"):
        old, new = plain.model_dump(mode=mode), other.model_dump(mode=mode)
        assert new.keys() - old.keys() == {"student_network"}
        assert new["students"].keys() - old["students"].keys() == {"adversarial"}
        assert Track.model_validate(old) == plain
        assert Track.model_validate(new) == other
    assert Track.model_validate_json(other.model_dump_json()) == other
    assert other.students.adversarial == AdversarialSpec(
        flavour="pgd", eps=8 / 255, steps=10, relative_step=0.25, beta=6.0
    )


def test_a_student_network_of_the_methods_kind_is_another_track_than_none() -> None:
    explicit = parse_track(GOOD + "[student_network]\nname = 'convnet'\n", "a")
    assert explicit.student_network == explicit.network
    assert explicit.sha256() != parse_track(GOOD, "b").sha256()


ILL_FORMED = [
    ("", "version = 1 2", "not valid TOML"),
    ("version = 1", "version = 0", "key version must be at least 1, not 0"),
    ("version = 1", "", "key version: Field required"),
    ('name = "t"', 'name = "T x"', "key name: String should match"),
    ("ipc = 1", "ipc = 0", "key data.ipc must be at least 1, not 0"),
    ("ipc = 1", "ipc = 'ten'", "key data.ipc: Input should be a valid integer"),
    ("ipc = 1", "ipc = 1\nipcc = 2", "key data.ipcc: Extra inputs are not permitted"),
    ("[students]", "[student]", "key students: Field required; key student: Extra inputs"),
    ("epochs = 10", "epochs = 10\nmomentum = 1.0", "key students.momentum must be less than 1"),
    ("epochs = 10", "epochs = 10\nlearning_rate = nan", "key students.learning_rate: Input should"),
    ('"51/255"]', "0.05]", "key threat.ladder: the ladder must rise"),
    ('"51/255"]', "0.1]", "key threat.ladder: the ladder must rise"),
    ('"51/255"]', '"1/0"]', "key threat.ladder.1: '1/0' is neither a number nor"),
    ('"51/255"]', '"a/b"]', "key threat.ladder.1: 'a/b' is neither a number nor"),
    ('"51/255"]', "inf]", "key threat.ladder.1: Input should be"),
    ('"51/255"]', '"nan"]', "key threat.ladder.1: Input should be"),
    ('[0.1, "51/255"]', "[0.0, 0.1]", "key threat.ladder.0 must be more than 0"),
    ('[0.1, "51/255"]', "[]", "key threat.ladder: Tuple should have at least 1 item"),
    ("headline = 0.1", "headline = 0.3", "key threat: the headline eps must be one"),
    (
        "headline = 0.1",
        "headline = 0.1\nnorm = 'L1'",
        "key threat.norm must be 'Linf' or 'L2', not 'L1'",
    ),
    ('name = "pgd"', 'name = "pgd"\n[[attacks]]\nname = "pgd"', "key attacks: each"),
    ('name = "pgd"', 'nom = "pgd"', "key attacks.0.name: Field required"),
    ("epochs = 10", "epochs = 10\n[students.adversarial]", "key students.adversarial.eps: Field r"),
    (
        "epochs = 10",
        "epochs = 10\nadversarial = { eps = 0.1, flavour = 'mart' }",
        "key students.adversarial.flavour must be 'pgd' or 'trades'",
    ),
    (
        "epochs = 10",
        "epochs = 10\nadversarial = { eps = '8/255', steps = 0 }",
        "key students.adversarial.steps must be at least 1",
    ),
    ("[data]", "[student_network]\nnom = 'mlp'\n[data]", "key student_network.nom: Extra inputs"),
    ("[data]", "[preprocessing]\nkind = 'zcaa'\n[data]", "key preprocessing.kind must be"),
    ("version = 1", f"version = {10**30}", "key version must be at most 1000000"),
    ("ipc = 1", f"ipc = {10**9}", "key data.ipc must be at most 100000, not 1000000000"),
    ("ipc = 1", f"ipc = 1\nsplit_seed = {10**20}", "key data.split_seed must be at most 922337203"),
    ("epochs = 10", f"epochs = {10**18}", "key students.epochs must be at most 1000000"),
    (
        "epochs = 10",
        f"epochs = 10\ncount = {10**9}",
        "key students.count must be at most 1000",
    ),
    ('"51/255"]', "7.0]", "key threat: no eps in Linf is larger than 1: pixels lie in [0,1]"),
    ("[data]", "[preprocessing]\nkind = 'normalise'\n[data]", "key preprocessing: n"),
]


@pytest.mark.parametrize(("old", "new", "message"), ILL_FORMED)
def test_an_ill_formed_track_names_file_key_and_reason_in_one_line(
    old: str, new: str, message: str
) -> None:
    text = GOOD.replace(old, new, 1) if old else new
    assert text != GOOD
    with pytest.raises(UsageError) as caught:
        parse_track(text, "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _numbers(schema: dict[str, Any], where: str = "track") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every place of a JSON schema that takes numbers, definitions included."""
    if schema.get("type") in ("integer", "number") and "enum" not in schema:
        yield where, schema
    for key, inside in {**schema.get("properties", {}), **schema.get("$defs", {})}.items():
        yield from _numbers(inside, f"{where}.{key}")
    for inside in [*schema.get("anyOf", ()), *filter(None, [schema.get("items")])]:
        yield from _numbers(inside, where)


def test_every_number_of_a_track_has_two_bounds() -> None:
    found = dict(_numbers(Track.model_json_schema()))
    assert len(found) >= 25
    for place, schema in found.items():
        assert {"minimum", "exclusiveMinimum"} & schema.keys(), place
        assert {"maximum", "exclusiveMaximum"} & schema.keys(), place


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "ipc = 1",
            "ipc = 1\noptions = { test_fraction = 0 }",
            "test_fraction must be more than",
        ),
        (
            "ipc = 1",
            "ipc = 1\noptions = { test_fraction = 2 }",
            "test_fraction must be less than",
        ),
        (
            "ipc = 1",
            "ipc = 1\noptions = { tset = 2 }",
            "data.options: unknown key 'tset'; known",
        ),
        ("[data]", "[network]\noptions = { width = 0 }\n[data]", "width must be at least 1, not 0"),
        (
            "[data]",
            "[network]\noptions = { depth = 1000000000 }\n[data]",
            "track 't', network.options: depth must be at most 100, not 1000000000",
        ),
        (
            "[data]",
            "[student_network]\nname = 'mlp'\noptions = { width = 'wide' }\n[data]",
            "student_network.options: width: Input should be a valid integer, not 'wide'",
        ),
        (
            'name = "pgd"',
            'name = "pgd"\nconfig = { steps = 1000000000000 }',
            "steps must be at m",
        ),
    ],
)
def test_what_a_dataset_network_or_attack_does_not_take_is_refused_when_planning(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.toml"
    path.write_text(GOOD.replace(old, new, 1))
    assert path.read_text() != GOOD
    with pytest.raises(UsageError) as caught:
        make_plan(collect(get_plugin_manager()), method="random", track=str(path), device="cpu")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"), [("8/255", 8 / 255), ("0.5", 0.5), (0.1, 0.1), (" 1 / 2 ", 0.5)]
)
def test_an_eps_may_be_a_number_or_a_fraction(value: object, expected: float) -> None:
    assert parse_eps(value) == expected


@pytest.mark.parametrize(
    ("eps", "label"),
    [
        (1 / 255, "1/255"),
        (2 / 255, "2/255"),
        (8 / 255, "8/255"),
        (0.1, "0.10"),
        (0.05, "0.05"),
        (0.2, "0.20"),
        (51 / 255, "0.20"),
        (0.6, "0.60"),
        (1.0, "1.00"),
        (0.125, "0.125"),
        (0.0015, "0.0015"),
    ],
)
def test_an_eps_is_written_as_the_field_writes_it(eps: float, label: str) -> None:
    assert eps_label(eps) == label
    assert parse_eps(label) == pytest.approx(eps)


OPTIONAL = {
    "student_network": NetworkSpec(),
    "adversarial": AdversarialSpec(eps=0.1),
    "mix": MixSpec(),
    "teaching": TeachingSpec(),
}
LITERALS = {
    "Linf": "L2",
    "normalise": "zca",
    "pgd": "trades",
    "sgd": "adamw",
    "drop": "cosine",
    "cutmix": "mixup",
    "kl": "cross-entropy",
}


def _neighbours(value: Any) -> Iterator[Any]:
    """Copies of a value, each with one field somewhere inside it changed to another valid one."""
    if isinstance(value, BaseModel):
        for key, other in OPTIONAL.items():
            if key in type(value).model_fields and getattr(value, key) is None:
                yield value.model_copy(update={key: other})
        for key in type(value).model_fields.keys() - OPTIONAL.keys():
            for other in _neighbours(getattr(value, key)):
                yield value.model_copy(update={key: other})
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for i, item in enumerate(value):
            for other in _neighbours(item):
                yield (*value[:i], other, *value[i + 1 :])
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + 1
    elif isinstance(value, str):
        yield LITERALS.get(value, f"{value}x")
    elif isinstance(value, tuple):
        yield (*value, 99.0)
    else:
        yield 7 if value is None else {"new": 1}


def test_the_hash_changes_with_every_field() -> None:
    track = load_track("cifar10-ipc1", REGISTRY)
    students = [*_neighbours(NetworkSpec()), *_neighbours(AdversarialSpec(eps=0.1, flavour="pgd"))]
    kinds = {AdversarialSpec: "adversarial", MixSpec: "mix", TeachingSpec: "teaching"}
    students += [*_neighbours(MixSpec()), *_neighbours(TeachingSpec())]
    others = list(_neighbours(track))
    others += [
        track.model_copy(update={"student_network": spec})
        if isinstance(spec, NetworkSpec)
        else track.model_copy(
            update={"students": track.students.model_copy(update={kinds[type(spec)]: spec})}
        )
        for spec in students
    ]
    assert len(others) > 33
    assert len({track.sha256(), *(other.sha256() for other in others)}) == len(others) + 1


def test_the_hash_does_not_depend_on_how_the_file_is_written() -> None:
    spaced = GOOD.replace(" = ", "=").replace("0.1,", "0.10,").replace('"51/255"', "0.2")
    assert parse_track(spaced, "a").sha256() == parse_track(GOOD, "b").sha256()


def test_a_path_to_a_toml_file_is_a_track(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    track = load_track(str(path), REGISTRY)
    assert (track.name, track.threat.ladder) == ("t", (0.1, 0.2))
    assert read_track_text(str(path), REGISTRY) == (GOOD, str(path))


def recorded(folder: Path, **changes: Any) -> str:
    """A file that holds a track as a record does."""
    track = parse_track(GOOD, "a")
    fields = {"track": track.model_dump(mode="json"), "track_sha256": track.sha256()}
    (folder / "record.json").write_text(json.dumps(fields | changes), encoding="utf-8")
    return str(folder)


def test_a_record_and_the_folder_of_a_run_are_the_track_that_was_run(tmp_path: Path) -> None:
    folder = recorded(tmp_path)
    for name in (folder, f"{folder}/", f"{folder}/record.json"):
        assert load_track(name, REGISTRY) == parse_track(GOOD, "a")
        assert source_name(name) == "record.json"
    assert (source_name("a/mine.toml"), source_name("digits-ipc1")) == ("mine.toml", "digits-ipc1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"track": None}, "is not a record: it holds no track"),
        ({"track_sha256": "0" * 64}, "track_sha256 is not the hash of the track"),
        ({"track": {"name": "t", "ipc": 1}}, "record.json, track: key "),
    ],
)
def test_a_record_without_its_track_is_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_track(recorded(tmp_path, **changes), REGISTRY)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"[1]", b"{", b"\xff"])
def test_what_is_no_record_is_no_track(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"record\.json") as caught:
        load_track(str(tmp_path), REGISTRY)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_track_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no track file .*nowhere\.toml"):
        load_track(str(tmp_path / "nowhere.toml"), REGISTRY)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.toml: not readable as text") as caught:
        load_track(str(binary), REGISTRY)
    assert "\n" not in str(caught.value)


def test_an_unknown_track_is_met_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="unknown track 'digit-ipc1'; did you mean 'digits-ipc1'"):
        load_track("digit-ipc1", REGISTRY)


def _registry_with(name: str, target: str) -> Registry:
    class Plugin:
        @hookimpl
        def robustdd_register_tracks(self, register: Any) -> None:
            register(name, target)

    return collect(get_plugin_manager(extra=[("mine", Plugin())], entry_points=False))


def test_a_track_of_a_plugin_is_read_from_its_package() -> None:
    registry = _registry_with("again", "robustdd_bench.protocol:tracks/digits-ipc1.toml")
    text, source = read_track_text("again", registry)
    assert source == "tracks/digits-ipc1.toml"
    assert tomllib.loads(text)["name"] == "digits-ipc1"
    with pytest.raises(UsageError, match="is 'digits-ipc1' but registered as 'again'"):
        load_track("again", registry)


@pytest.mark.parametrize(
    "target", ["robustdd_bench.protocol:tracks/no.toml", "no_such_package_x:a.toml"]
)
def test_a_registered_track_without_a_file_names_the_plugin(target: str) -> None:
    with pytest.raises(UsageError, match="plugin 'mine': cannot read track 'gone'"):
        load_track("gone", _registry_with("gone", target))
