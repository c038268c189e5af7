"""What is said beside the figures of a board, on the page and in tables of every format."""

from __future__ import annotations

from robustdd_bench.board.ranking import LEAST_SEEDS
from robustdd_bench.board.schema import SpreadContent, TrackContent
from robustdd_bench.board.standings import Spread
from robustdd_bench.drawing.rendering import setting
from robustdd_bench.evaluation.statistics.comparison import CONFIDENCE, RESAMPLES
from robustdd_bench.protocol.suite import suite_note

PERCENT = f"{100 * CONFIDENCE:.0f} %"
RANK_RULE = (
    "Rank: 1 + the number of ranked rows of the same table whose paired difference to this row at "
    f"the headline eps has a {PERCENT} interval above 0; rows with fewer than {LEAST_SEEDS} seeds "
    "in common are never separated"
)
UNCORRECTED = (
    "Intervals take in seeds, students and examples; they are not corrected for the number of "
    "pairs (k ranked rows have k(k-1)/2 intervals) or of eps"
)
RULE = f"{RANK_RULE}. {UNCORRECTED}."
DAGGER = "† not separated from at least one other ranked row."
UNRANKED = "Rows below the rule have no rank: references, and rows that say why."


def deviation(value: SpreadContent | Spread) -> float | None:
    """The one that is shown: over seeds where there is one, else over students."""
    return value.std_students if value.std_seeds is None else value.std_seeds


def accuracy_note(track: TrackContent, eps: str) -> str:
    """What the figures of a board's table are, in a sentence.

    Args:
        track: the track.
        eps: how eps and its norm are written here.
    """
    return (
        f"Accuracy in %, mean ± standard deviation over distillation seeds (of one seed: over "
        f"its {track.students.count} students); {track.evaluation_examples} test images; "
        f"{eps}, * headline; {suite_note(track.attacks, track.headline_eps)}."
    )


def pairs_note(ranked: int) -> str:
    """How many intervals the ranks of a table rest on, in a sentence.

    Args:
        ranked: how many rows have a rank.
    """
    pairs = ranked * (ranked - 1) // 2
    return f"{ranked} ranked rows, {pairs} intervals of {PERCENT} each"


def comparison_note(seeds: int, same_division: bool) -> str:
    """What the intervals of a comparison are, and what they mean for ranks.

    Args:
        seeds: how many distillation seeds are paired.
        same_division: whether both are ranked in one division.
    """
    said = [
        f"Each {PERCENT} interval is a bootstrap over seeds, students and examples ({RESAMPLES} "
        "resamples), not corrected for the number of eps or of pairs that are looked at."
    ]
    if not same_division:
        said.append("The two are of different divisions and are never ranked together.")
    elif seeds < LEAST_SEEDS:
        said.append(
            f"Ranks separate no pair with fewer than {LEAST_SEEDS} seeds in common, as this one."
        )
    return " ".join(said)


_TRAINED = {
    "natural": "trained naturally",
    "pgd": "trained adversarially (PGD-AT)",
    "trades": "trained adversarially (TRADES)",
    "teacher": "trained naturally, on labels by the teacher of a set where it has one",
}


def recipe(track: TrackContent) -> str:
    """How the students of a track are trained, in one line."""
    spec = track.students
    adam = spec.optimiser == "adamw"
    own = " unless the set brings its own" if spec.own_rate else ""
    cosine = ", falling to 0 as a cosine"
    drop = f", × {setting(spec.drop_factor)} after {round(100 * spec.drop_at)} %"
    words = [
        f"{spec.epochs} epochs of {'AdamW' if adam else 'SGD'}, batch {spec.batch_size}",
        f"learning rate {setting(spec.learning_rate)}{own}"
        f"{cosine if spec.schedule == 'cosine' else drop}",
        *([] if adam else [f"momentum {setting(spec.momentum)}"]),
        f"weight decay {setting(spec.weight_decay)}",
        f"augmentation {spec.augmentation}",
    ]
    if spec.mix is not None:
        words.append(f"{spec.mix.kind} with Beta({setting(spec.mix.alpha)})")
    if spec.teaching is not None:
        loss = "KL divergence" if spec.teaching.loss == "kl" else "cross-entropy"
        words.append(f"{loss} at temperature {setting(spec.teaching.temperature)}")
    return f"{_TRAINED[track.training]}: {', '.join(words)}"
