"""What leaderboard.json holds: the board as data, from which tables and the page are made.

Accuracies and eps are in units of [0,1], costs in seconds and bytes. Nothing
here depends on when or where the board is built: the same published runs give the same bytes.
"""

from __future__ import annotations

from typing import Any, Literal

from robustdd_bench.board.reported import Reported
from robustdd_bench.board.submission import Submission
from robustdd_bench.models import StrictModel
from robustdd_bench.protocol.tracks import StudentSpec
from robustdd_bench.runs.record_parts import AggregateInfo

BOARD_VERSION = 4
"""2: rows have `rank`, `tied`, `division` and `scores`. 3: costs, checks, configurations, previews,
submissions and reported figures; what a track is. 4: `rank` counts the rows that are separated from
a row, pair by pair (it was made of groups), `tied` says that some row is not, `level_with` which;
`division` is a text, with divisions for preprocessing of their own and for imported sets."""


class SpreadContent(StrictModel):
    """An accuracy over the runs of a row; see `board.standings.Spread`."""

    mean: float
    std_seeds: float | None
    """Over distillation seeds (ddof 1); null for one seed."""
    std_students: float | None
    """Over the students of one run (ddof 1), the mean over runs."""
    low: float
    """Lower end of the 95 % Wilson interval over examples."""
    high: float


class RobustContent(SpreadContent):
    """Accuracy at one eps, per example the worst case over all attacks at it or a smaller one."""

    eps: float


class RunRobustContent(AggregateInfo):
    """Accuracy of one run at one eps."""

    eps: float


class AttackAloneContent(StrictModel):
    """Accuracy under one attack alone, the mean over runs."""

    attack: str
    eps: float
    mean: float
    examples: int


class ScoresContent(StrictModel):
    """Scores of the field, which never rank; see `robustdd_bench.evaluation.scores`."""

    drop_rate: float | None
    robustness_ratio: float | None
    improved_robustness_ratio: float | None
    gain_clean: float | None
    gain_headline: float | None


class CostContent(StrictModel):
    """What a run cost, on which hardware."""

    device: Literal["cpu", "cuda"]
    hardware: str
    """The processor or accelerator, as it calls itself."""
    distillation_s: float
    """Seconds of all experts and the distillation; device seconds where `device` is "cuda"."""
    evaluation_s: float
    """Seconds of students, attacks and checks."""
    peak_bytes: int
    """Largest memory of a stage: of the device on "cuda", else of the process."""
    distillation_peak_bytes: int
    """The same over experts and distillation."""


class CheckContent(StrictModel):
    """A sanity check of the evaluation."""

    name: str
    meaning: str
    """What it guards against; "" for a check that is unknown here."""
    passed: int
    """Students of the row that passed."""
    students: int


class RunContent(StrictModel):
    """One run of a row: a distillation seed."""

    run_id: str
    seed: int
    images: int
    labels: Literal["hard", "soft"]
    learning_rate: float | None
    clean: AggregateInfo
    headline: AggregateInfo
    robust: tuple[RunRobustContent, ...]
    cost: CostContent
    command: str
    folder: str
    """Below the board's folder."""
    set_file: str | None
    """The distilled set, below the board's folder; null for a reference, whose set is the data."""
    preview: str
    """A picture of the set, below the board's folder."""
    results_sha256: str
    set_sha256: str
    torch: str
    harness: str
    commit: str | None
    adopted_from: str | None
    """The run whose set was taken over, if one was."""
    submission: Submission | None


class RowContent(StrictModel):
    """A method with one configuration over its seeds."""

    id: str
    """Names the row on its track for links; stable while its runs stand."""
    method: str
    plugin: str
    distribution: str
    version: str
    preset: str
    config: dict[str, Any]
    reference: bool
    division: str
    """What it is ranked in: the labels of its sets, "hard" or "soft", and after commas what else
    sets them apart: "own preprocessing", "imported"."""
    rank: int | None
    """1 + the number of ranked rows of the division that are separated from it in their favour;
    null where it is not ranked."""
    tied: bool
    """`level_with` is not empty."""
    level_with: tuple[str, ...]
    """Ids of the ranked rows of the division that are not separated from it."""
    images: int
    seeds: tuple[int, ...]
    clean: SpreadContent
    headline: SpreadContent
    robust: tuple[RobustContent, ...]
    attacks: tuple[AttackAloneContent, ...]
    scores: ScoresContent
    cost: CostContent
    """The mean over runs; peaks are the largest."""
    checks: tuple[CheckContent, ...]
    marks: tuple[str, ...]
    """Keys of `BoardContent.marks`."""
    command: str
    """Makes the first run again."""
    runs: tuple[RunContent, ...]


class AttackContent(StrictModel):
    """An attack of a suite."""

    name: str
    on: Literal["all", "survivors"]
    at: Literal["ladder", "headline"]
    examples: int | None
    config: dict[str, Any]
    """Every setting."""


class TrackContent(StrictModel):
    """A track in its newest version, and its rows."""

    track: str
    version: int
    summary: str
    sha256: str
    family: str
    """The track whose sets these are."""
    dataset: str
    num_classes: int
    shape: tuple[int, int, int]
    ipc: int
    network: str
    student_network: str
    """As text with options; the same as `network` but on transfer tracks."""
    preprocessing: str
    training: Literal["natural", "pgd", "trades"]
    """How students are trained."""
    students: StudentSpec
    norm: Literal["Linf", "L2"]
    headline_eps: float
    ladder: tuple[float, ...]
    attacks: tuple[AttackContent, ...]
    train_examples: int
    evaluation_examples: int
    rows: tuple[RowContent, ...]
    """By division (hard labels first), then mean headline accuracy; those without a rank last."""


class BoardContent(StrictModel):
    """The whole board."""

    board_version: Literal[4]
    tracks: tuple[TrackContent, ...]
    marks: dict[str, str]
    """Marks that rows bear, and what they mean."""
    reported: dict[str, Reported]
    """Figures of papers by source, in protocols of their own: never ranked."""


def board_schema() -> dict[str, Any]:
    """JSON Schema of leaderboard.json."""
    schema = BoardContent.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"robustdd-bench board, version {BOARD_VERSION}"
    return schema
