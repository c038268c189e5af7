"""The file of a sweep: which methods on which tracks, with which seeds and settings.

    name = "eps-of-experts"
    methods = ["mat", "mtt"]
    tracks = ["digits-ipc1", "digits-ipc10"]
    seeds = [0, 1, 2]
    validate = true

    [settings.mat]
    eps = [0.05, 0.10]          # a list is an axis: each of its values is tried
    ema = 0.99                  # anything else is fixed

    [presets]
    mtt = ["default", "quick"]  # an axis too

    [[runs]]                    # beside the grid: settings that belong together
    method = "mat"
    set = { eps = 0.05, attack_steps = 5 }

The grid is the product of methods, presets, axes, tracks and seeds. Settings are held against the
method when the runs are planned, exactly as those of `--set`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails

from robustdd_bench.config import problem
from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.tracks import MAX_SEED
from robustdd_bench.records.plan import DEFAULT_TRACK
from robustdd_bench.records.presets import DEFAULT_PRESET
from robustdd_bench.strict import StrictModel, read_bounded
from robustdd_bench.text.terminal import hides

MAX_BYTES = 2**20
MAX_RUNS = 10_000

Value = TypeVar("Value")


def _listed(value: object) -> object:
    """A name alone stands for a list of one."""
    return (value,) if isinstance(value, str) else value


def _some(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Refuse an empty list: the product would have no runs."""
    if not values:
        raise ValueError("the list is empty")
    return values


Names = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_some)]
Seeds = Annotated[
    tuple[Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)], ...], AfterValidator(_some)
]


class SweepFileError(UsageError):
    """A file of a sweep is wrong in one or more places.

    Args:
        path: the file.
        problems: a line for each, which begins with its place.
    """

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(problems) == 1:
            super().__init__(f"{path}: {problems[0]}")
        else:
            super().__init__(f"{path}: {len(problems)} entries are wrong: {'; '.join(problems)}")


class RunsSpec(StrictModel):
    """One method with settings that belong together."""

    method: str
    preset: str = DEFAULT_PRESET
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of the method; a list is a value here, and no axis."""
    tracks: Names | None = None
    """None: those of the grid."""
    seeds: Seeds | None = None
    """None: those of the grid."""


class SweepSpec(StrictModel):
    """A sweep as its file tells it."""

    name: str = Field(default="", max_length=100)
    """What it is called; the name of the file if empty."""
    methods: Names | None = None
    """Methods of the grid; None where all runs are named one by one."""
    tracks: Names = (DEFAULT_TRACK,)
    """Registered tracks, or paths of .toml files, which are looked for beside this file."""
    seeds: Seeds = (0,)
    validation: bool = Field(default=False, alias="validate", strict=True)
    """Whether to judge on a split of the training data, as `run --validate` does."""
    presets: dict[str, Names] = Field(default_factory=dict)
    """Presets by method."""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings by method; a list is an axis, everything else is fixed."""
    runs: tuple[RunsSpec, ...] = ()

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if any(hides(c) or c in "/\\\n" for c in name):
            raise ValueError("the name holds a slash or a character that cannot be shown")
        return name


def read_sweep_file(path: Path) -> SweepSpec:
    """Read the file of a sweep.

    Raises:
        SweepFileError: it is TOML, but not the file of a sweep; every wrong place is named.
        UsageError: it is missing, too large or no TOML.
    """
    content = read_bounded(path, "the file of a sweep", MAX_BYTES)
    try:
        fields = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    try:
        spec = SweepSpec.model_validate(fields)
    except ValidationError as error:
        raise SweepFileError(path, [_problem(item) for item in error.errors()]) from error
    problems = _contradictions(spec)
    if problems:
        raise SweepFileError(path, problems)
    return spec


def _problem(item: ErrorDetails) -> str:
    """What pydantic found, with the place and, for an unknown key, a suggestion."""
    *table, key = item["loc"] or ("(top level)",)
    if item["type"] != "extra_forbidden":
        return problem({**item, "loc": (place(*item["loc"]),)})
    model: type[BaseModel] = RunsSpec if table and table[0] == "runs" else SweepSpec
    known = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    where = f"{place(*table)}: " if table else ""
    return f"{where}unknown key {key!r}; {hint}"


def place(*keys: str | int) -> str:
    """Where something stands in the file, e.g. "runs[0].method"."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text or "the file"


def _contradictions(spec: SweepSpec) -> list[str]:
    """What the parts of the file say against one another."""
    if spec.methods is None and not spec.runs:
        return ["it names no run: give `methods`, or [[runs]]"]
    problems = []
    methods = spec.methods or ()
    for table in ("presets", "settings"):
        for method in getattr(spec, table):
            if method not in methods:
                close = difflib.get_close_matches(method, methods, n=1, cutoff=0.5)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                problems.append(f"{place(table, method)}: {method!r} is not in `methods`{hint}")
    for method, settings in spec.settings.items():
        problems += [
            f"{place('settings', method, key)}: the list is empty"
            for key, value in settings.items()
            if value == []
        ]
    return problems
