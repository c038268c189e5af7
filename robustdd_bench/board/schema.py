"""What leaderboard.json holds: the board as data, from which tables and the page are made.

Accuracies and eps are in units of [0,1], costs in seconds and bytes. Nothing
here depends on when or where the board is built: the same published runs give the same bytes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from robustdd_bench.board.admission.submission import Submission
from robustdd_bench.board.confirmations import Deviation
from robustdd_bench.board.reported import Reported
from robustdd_bench.protocol.tracks import StudentSpec
from robustdd_bench.records.parts import AggregateInfo
from robustdd_bench.strict import StrictModel

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
    """Scores of the field, which never rank; see `robustdd_bench.evaluation.statistics.scores`."""

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


class ConfirmationContent(StrictModel):
    """A run made again: what it found, with what, and how far that is from the run."""

    run_id: str
    clean: float
    """Mean accuracy over students, in [0,1]."""
    robust: tuple[float, ...]
    """The same at each eps of the ladder."""
    largest_difference: float
    """Accuracy here minus that of the run, where the two are furthest apart."""
    largest_at: float
    """The eps of it; 0: clean."""
    same_set: bool
    same_results: bool
    """Bit for bit: set, weights of the students and outcomes."""
    device: Literal["cpu", "cuda"]
    hardware: str
    torch: str
    harness: str
    version: str
    """Of the method's distribution."""
    commit: str | None
    folder: str
    """Below the board's folder."""
    submission: Submission | None


class ConfirmedContent(StrictModel):
    """How often the runs of a row were made again, and how far that led from them."""

    count: int
    largest_difference: float
    """Accuracy of the confirmation minus that of its run, where any two are furthest apart."""
    largest_at: float
    """The eps of it; 0: clean."""
    seed: int
    """The seed of it."""

    def __str__(self) -> str:
        """E.g. "confirmed twice, largest difference +1.2 points at 0.10 (seed 0)"."""
        times = {1: "once", 2: "twice"}.get(self.count, f"{self.count} times")
        told = str(Deviation(self.largest_at, self.largest_difference))
        return f"confirmed {times}, {told}" + (
            f" (seed {self.seed})" if self.largest_difference else ""
        )


class PaperContent(StrictModel):
    """The paper of a method."""

    reference: str
    """The whole reference, in a line."""
    short: str
    """Such as "Lai et al. 2025"."""
    link: str
    """Where it is; "" if that is not known."""
    bibtex: str


class RunContent(StrictModel):
    """One run of a row: a distillation seed."""

    ADDED: ClassVar = {"confirmations": "0.2.0", "finished": "0.2.0"}

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
    """The run whose set is reused, if one is."""
    submission: Submission | None
    confirmations: tuple[ConfirmationContent, ...] = ()
    """The same run made again; no further sample."""
    finished: str | None = None
    """The day on which it ended, such as "2026-11-28", in UTC."""


class RowContent(StrictModel):
    """A method with one configuration over its seeds."""

    ADDED: ClassVar = {
        "other_runs": "0.2.0",
        "confirmed": "0.2.0",
        "training_images": "0.2.0",
        "stored_bytes": "0.2.0",
        "paper": "0.2.0",
        "label": "0.2.0",
    }

    id: str
    """Names the row on its track for links; stable while its runs stand."""
    method: str
    """Its method; of a set that was made elsewhere what its submitter calls it."""
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
    """The seeds that the figures are made of: those that the track ranks, or all where none is."""
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
    other_runs: tuple[RunContent, ...] = ()
    """Runs of seeds that the track does not rank; not counted."""
    confirmed: ConfirmedContent | None = None
    training_images: int | None = None
    """How many images students train on, where these are not the stored ones: of mosaics."""
    paper: PaperContent | None = None
    """Of a method that comes with the benchmark and has one."""
    stored_bytes: int | None = None
    """What images, labels and teacher of a set weigh, on tracks whose students are taught by a
    teacher; the largest of the row."""
    label: str | None = None
    """What tells it from other rows of its method, such as "mtt (full-data)"; null where it is the
    only one."""

    @property
    def name(self) -> str:
        """What tables and pictures call it."""
        return self.label or self.method


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

    ADDED: ClassVar = {"ranked_seeds": "0.2.0"}

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
    training: Literal["natural", "pgd", "trades", "teacher"]
    """How students are trained; "teacher": naturally, on labels by the teacher of a set."""
    students: StudentSpec
    norm: Literal["Linf", "L2"]
    headline_eps: float
    ladder: tuple[float, ...]
    attacks: tuple[AttackContent, ...]
    train_examples: int
    evaluation_examples: int
    ranked_seeds: int = 3
    """Seeds 0, 1, 2, ...: so many are ranked."""
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
