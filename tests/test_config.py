"""Configurations: what is accepted, what is refused in one line, and what a user is shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pytest
from pydantic import BeforeValidator, Field, model_validator

from robustdd_bench.cli.shared.config_fields import ConfigField, describe_config
from robustdd_bench.config import (
    all_settings,
    build_config,
    check_options,
    config_to_dict,
    parse_assignments,
    settings,
)
from robustdd_bench.errors import PluginError, UsageError
from robustdd_bench.plugins import collect, get_plugin_manager

Doubled = Annotated[float, BeforeValidator(lambda v: float(v[1:]) if isinstance(v, str) else v)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    seed: int = 3
    """A field of the parent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(Base):
    steps: int = 20
    """Number of steps;
    one line below."""
    rate: float = 0.1
    """Learning rate."""
    flag: bool = False
    mode: Literal["a", "b"] = "a"
    name: str = "x"
    widths: tuple[int, ...] = (1, 2)
    rates: dict[str, float] = field(default_factory=dict)
    limit: int | None = 5
    label: str | None = None
    path: Path | None = None
    eps: Doubled = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be positive,\nnot {self.steps}")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, Config()),
        ({"steps": 7}, Config(steps=7)),
        ({"seed": 9}, Config(seed=9)),
        ({"rate": 1}, Config(rate=1.0)),
        ({"flag": True, "mode": "b"}, Config(flag=True, mode="b")),
        ({"widths": [3, 4]}, Config(widths=(3, 4))),
        ({"rates": {"a": 1}}, Config(rates={"a": 1.0})),
        ({"limit": "none"}, Config(limit=None)),
        ({"limit": None}, Config(limit=None)),
        ({"label": "none"}, Config(label="none")),
        ({"path": "a/b"}, Config(path=Path("a/b"))),
        ({"path": Path("a/b")}, Config(path=Path("a/b"))),
        ({"eps": "x2"}, Config(eps=2.0)),
    ],
)
def test_overrides_take_the_place_of_defaults(overrides: dict[str, Any], expected: Config) -> None:
    assert build_config(Config, overrides, "method 'm'") == expected


def test_an_int_given_for_a_float_becomes_a_float() -> None:
    assert type(build_config(Config, {"rate": 1}, "m").rate) is float


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"step": 1}, ["unknown key 'step'", "did you mean 'steps'?"]),
        ({"qqqqq": 1}, ["unknown key 'qqqqq'", "known: seed, steps, rate"]),
        ({"steps": "abc"}, ["steps:", "integer", "'abc'"]),
        ({"steps": "7"}, ["steps:", "integer", "'7'"]),
        ({"steps": 20.0}, ["steps:", "integer", "20.0"]),
        ({"steps": True}, ["steps:", "integer", "True"]),
        ({"steps": 0}, ["steps must be positive, not 0"]),
        ({"rate": "0.1"}, ["rate:", "number", "'0.1'"]),
        ({"rate": float("nan")}, ["rate: NaN and infinity are not accepted"]),
        ({"rate": float("inf")}, ["rate: NaN and infinity are not accepted"]),
        ({"rates": {"a": float("nan")}}, ["rates: NaN and infinity are not accepted"]),
        ({"eps": "xinf"}, ["eps: NaN and infinity are not accepted"]),
        ({"flag": 1}, ["flag:", "boolean"]),
        ({"flag": "true"}, ["flag:", "boolean"]),
        ({"mode": "c"}, ["mode must be", "'a' or 'b'"]),
        ({"widths": [1, "x"]}, ["widths[1]:", "integer", "'x'"]),
        ({"widths": 3}, ["widths:", "3"]),
        ({"steps": "none"}, ["steps:", "integer"]),
        ({"steps": None}, ["steps:", "integer"]),
        ({"name": object()}, ["name:", "nothing a file can hold"]),
    ],
)
def test_nonsense_is_refused_in_one_line_that_names_owner_and_reason(
    overrides: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        build_config(Config, overrides, "method 'm'")
    text = str(caught.value)
    assert text.startswith("method 'm': ")
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_configuration_without_fields_says_so() -> None:
    @dataclass(frozen=True)
    class Empty:
        pass

    assert build_config(Empty, {}, "m") == Empty()
    with pytest.raises(UsageError, match="unknown key 'a'; it has no settings"):
        build_config(Empty, {"a": 1}, "m")


def test_a_class_that_is_no_configuration_is_the_plugins_fault() -> None:
    @dataclass(frozen=True)
    class Needy:
        steps: int

    @dataclass(frozen=True)
    class Untyped:
        steps: NoSuchType = 1  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PluginError, match="m: its Config is not a dataclass"):
        build_config(dict, {}, "m")
    with pytest.raises(PluginError, match=r"m: its configuration cannot be built: .*steps"):
        build_config(Needy, {}, "m")
    with pytest.raises(PluginError, match=r"m: the types of its Config cannot be read"):
        build_config(Untyped, {}, "m")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=20", 20),
        ("a = 0.5", 0.5),
        ("a=true", True),
        ("a=[1, 2]", [1, 2]),
        ("a={ b = 1 }", {"b": 1}),
        ('a="20"', "20"),
        ("a=abc", "abc"),
        ("a=8/255", "8/255"),
        ("a=b=c", "b=c"),
        ("a=", ""),
        ("a=none", "none"),
        ("a=2020-01-01", "2020-01-01"),
        ("a=1\nb=2", "1\nb=2"),
    ],
)
def test_a_value_is_toml_or_else_a_bare_string(text: str, value: Any) -> None:
    parsed = parse_assignments((text,))
    assert parsed == {"a": value}
    assert type(parsed["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [(".5", 0.5), ("5.", 5.0), ("-.25", -0.25), ("8/255", 8 / 255), ("2.5/10", 0.25)],
)
def test_a_number_may_be_written_as_people_write_it(text: str, value: float) -> None:
    @settings
    class Numbers:
        rate: float = 1.0
        rates: tuple[float, ...] = ()
        name: str = ""
        maybe: float | None = 1.0

    for overrides in ({"rate": text}, {"maybe": text}, {"rates": [text, 1.0]}):
        built = build_config(Numbers, overrides, "it")
        ((name, _),) = overrides.items()
        assert getattr(built, name) == ((value, 1.0) if name == "rates" else value)
    assert build_config(Numbers, {"name": text}, "it").name == text, "a text stays one"


@pytest.mark.parametrize("text", ["8/0", "1/2/3", "a/2", "/2", ".", "1/-2", "1e400"])
def test_what_is_no_number_is_refused(text: str) -> None:
    @settings
    class Rate:
        rate: float = 1.0

    with pytest.raises(UsageError, match="it: rate"):
        build_config(Rate, parse_assignments([f"rate={text}"]), "it")


def test_assignments_keep_their_order() -> None:
    assert list(parse_assignments(("b=1", "a=2"))) == ["b", "a"]
    assert parse_assignments(()) == {}


@pytest.mark.parametrize("text", ["steps", "=20", "", "  = 3"])
def test_an_assignment_without_key_or_equals_sign_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--set needs key=value"):
        parse_assignments((text,))


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--set gives 'a' twice"):
        parse_assignments(("a=1", "a=2"))


def test_a_configuration_goes_through_json_and_comes_back_equal() -> None:
    config = Config(steps=3, widths=(7,), rates={"a": 0.5}, path=Path("x"), limit=None)
    values = json.loads(json.dumps(config_to_dict(config), allow_nan=False))
    assert build_config(Config, values, "m") == config


def test_what_json_cannot_hold_is_the_plugins_fault() -> None:
    with pytest.raises(PluginError, match="holds NaN or infinity"):
        config_to_dict(Config(rate=float("inf")))
    with pytest.raises(PluginError, match="cannot be written as JSON"):
        config_to_dict(Config(name=object()))  # type: ignore[arg-type]


def test_fields_are_described_with_type_default_and_docstring() -> None:
    described = {item.name: item for item in describe_config(Config)}
    assert list(described)[:3] == ["seed", "steps", "rate"]
    assert described["seed"] == ConfigField("seed", "int", 3, "A field of the parent.")
    assert described["steps"].doc == "Number of steps;\none line below."
    assert described["mode"].type == "'a' | 'b'"
    assert described["rates"].default == {}
    assert described["limit"] == ConfigField("limit", "int | None", 5, "")


def test_a_class_without_source_is_still_described() -> None:
    made = dataclasses.make_dataclass("Made", [("a", int, 1)], frozen=True)
    assert describe_config(made) == [ConfigField("a", "int", 1, "")]


@settings
class Ranged:
    """Numbers with ranges, and a rule between two of them."""

    ADDED: ClassVar = {"tail": "0.2.0"}

    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    size: Annotated[float, Field(ge=0, le=1e38)] | None = None
    sizes: tuple[Annotated[int, Field(ge=3)], ...] = ()
    mode: Literal["a", "b"] = "a"
    tail: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.share * self.steps > 900:
            raise ValueError("share of steps must not be above 900")
        return self


@settings
class Finer(Ranged):
    """A subclass adds a field, and has the rules of its base."""

    more: Annotated[int, Field(ge=0, le=9)] = 1


@pytest.mark.parametrize("kind", [Ranged, Finer])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, "m: steps must be at least 1, not 0"),
        ({"steps": 1001}, "m: steps must be at most 1000, not 1001"),
        ({"share": 0}, "m: share must be more than 0, not 0"),
        ({"share": 1.0}, "m: share must be less than 1, not 1.0"),
        ({"size": 1e39}, "m: size must be at most 1e+38, not 1e+39"),
        ({"sizes": [4, 2]}, "m: sizes[1] must be at least 3, not 2"),
        ({"mode": "c"}, "m: mode must be 'a' or 'b', not 'c'"),
        ({"steps": 1000, "share": 0.95}, "m: share of steps must not be above 900"),
    ],
)
def test_a_number_out_of_its_range_and_a_broken_rule_are_told_in_one_line(kind, values, words):
    with pytest.raises(UsageError) as caught:
        build_config(kind, values, "m")
    assert str(caught.value) == words
    with pytest.raises(ValueError, match=next(iter(values)) if len(values) == 1 else "above 900"):
        kind(**values)


def test_settings_that_are_made_in_python_are_frozen_and_know_no_other_names() -> None:
    made = Finer(steps=3, size=2, more=4)
    assert (made.size, type(made.size)) == (2.0, float)
    assert all_settings(made)["more"] == 4
    assert config_to_dict(Ranged()) == {
        "steps": 20, "share": 0.5, "size": None, "sizes": [], "mode": "a"
    }  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.steps = 4  # type: ignore[misc]
    for values in ({"stepz": 3}, {"share": float("nan")}, {"steps": "many"}):
        with pytest.raises(ValueError, match=next(iter(values))):
            Ranged(**values)
    with pytest.raises(ValueError, match="steps"):
        dataclasses.replace(made, steps=0)


def test_ranges_are_described_as_intervals() -> None:
    described = {item.name: (item.type, item.range) for item in describe_config(Finer)}
    assert described == {
        "steps": ("int", "[1, 1000]"),
        "share": ("float", "(0, 1)"),
        "size": ("float | None", "[0, 1e+38]"),
        "sizes": ("tuple[int, ...]", "[3, inf)"),
        "mode": ("'a' | 'b'", ""),
        "tail": ("int", ""),
        "more": ("int", "[0, 9]"),
    }


SHIPPED = [
    (f"{entry.kind}-{entry.name}", entry.load().Config)
    for kind in ("distillers", "attacks")
    for entry in collect(get_plugin_manager()).entries[kind].values()
]


@pytest.mark.parametrize(("name", "kind"), SHIPPED, ids=[name for name, _ in SHIPPED])
def test_every_number_of_a_shipped_configuration_has_two_bounds(name, kind) -> None:
    for item in describe_config(kind):
        if {"int", "float"} & set(item.type.replace("|", " ").split()):
            assert item.range, item.name
            assert "inf" not in item.range, item.name
            for absurd in (10**39, -(10**39)):
                with pytest.raises(UsageError, match=rf"^m: {item.name} must be (at|more|less) "):
                    build_config(kind, {item.name: absurd}, "m")


def _build(shape, classes, *, width: Annotated[int, Field(ge=1, le=9)] = 3, norm="none"):
    """Stands for a builder of networks."""


def _open(root, download, *, size: int = 3, **options):
    """Stands for a loader that takes any option."""


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (_build, {"width": 0}, "width must be at least 1, not 0"),
        (_build, {"width": 10**9}, "width must be at most 9, not 1000000000"),
        (_build, {"width": "w"}, "width: Input should be a valid integer, not 'w'"),
        (_build, {"widht": 3}, "unknown key 'widht'; did you mean 'width'?"),
        (_build, {"shape": 3}, "unknown key 'shape'; known: width, norm"),
        (_open, {"size": "s"}, "size: Input should be a valid integer, not 's'"),
    ],
)
def test_options_are_held_against_the_keywords_of_the_function_that_gets_them(
    function, options, words
) -> None:
    with pytest.raises(UsageError) as caught:
        check_options(function, options, "track 't'")
    assert str(caught.value) == f"track 't': {words}"


def test_options_that_fit_pass_and_so_does_what_cannot_be_told() -> None:
    check_options(_build, {"width": 9, "norm": 7}, "t")
    check_options(_open, {"size": 1, "colour": "red"}, "t")
    check_options(object(), {"any": 1}, "t")


@dataclass(frozen=True, kw_only=True, slots=True)
class HandsOn:
    FURTHER: ClassVar[str] = "rest"

    steps: int = 20
    rest: Mapping[str, str | int] = dataclasses.field(default_factory=dict)


def test_a_class_that_hands_on_what_it_does_not_know_gets_it_under_one_field() -> None:
    made = build_config(HandsOn, {"steps": 3, "qos": "long", "rest": 1}, "executor 'x'")
    assert made == HandsOn(steps=3, rest={"qos": "long", "rest": 1})
    assert build_config(HandsOn, {}, "executor 'x'").rest == {}
    with pytest.raises(UsageError, match=r"executor 'x'.*not \[1\]"):
        build_config(HandsOn, {"qos": [1]}, "executor 'x'")
