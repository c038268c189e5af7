"""Scores of the field, beside the accuracies so that papers can be read against this board.

They never rank: each has defects that its function names. A is clean accuracy, A_mean and A_min
the mean and the smallest accuracy over a pool of attacks.

- Drop rate: Wu et al. 2024, "DD-RobustBench" (arXiv 2403.13322).
- RR, I-RR: Zhou et al. 2024, "BEARD" (arXiv 2411.09265). They are shares here, percent there. Its
  AE and CREI rest on the time of each attack, which records do not hold: it would measure the
  machine, the batch size and how attacks were written.
- Gain over random selection: after Li et al. 2025, "DD-Ranking" (arXiv 2505.13300).

A pool of this board is a track's suite at the headline eps, each attack alone; BEARD's has other
attacks at eps of other norms, so RR and I-RR compare rows of one board, not boards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustdd_bench.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The scores of one standing; None where one is not defined."""

    drop_rate: float | None
    robustness_ratio: float | None
    """BEARD's RR."""
    improved_robustness_ratio: float | None
    """BEARD's I-RR."""
    gain_clean: float | None
    """Clean accuracy minus that of random selection, in [-1,1]."""
    gain_headline: float | None
    """Robust accuracy at the headline eps minus that of random selection."""


def _checked(clean: float, attacked: Sequence[float]) -> None:
    if not attacked:
        raise UsageError("a score over attacks needs at least one attack")
    if not all(0 <= value <= 1 for value in (clean, *attacked)):
        raise UsageError("accuracies must lie in [0,1]")


def drop_rate(clean: float, robust: float) -> float | None:
    """DR = (A - A_rob) / A, the share of clean accuracy that attacks take; None if A is 0.

    Defects: a method gets better by being worse without an attack: at .10 clean and .10 robust
    (chance) it is 0, the best there is. It depends on eps and attack, which its name does not say.

    Raises:
        UsageError: a value lies outside [0,1].
    """
    _checked(clean, [robust])
    return (clean - robust) / clean if clean else None


def robustness_ratio(clean: float, attacked: Sequence[float]) -> float | None:
    """RR = 1 - (A - A_mean) / (A - A_min); None if no attack takes anything.

    Defects: it compares the mean of the attacks with the strongest, so it says how unlike they are
    rather than how robust the network is: one attack gives 0 for every network, a weak attack more
    raises it, and so can a stronger one. A lower clean accuracy raises it. It exceeds 1 where
    A_mean > A.

    Args:
        clean: A.
        attacked: accuracy under each attack of the pool.

    Raises:
        UsageError: there is no attack, or a value lies outside [0,1].
    """
    _checked(clean, attacked)
    mean, least = sum(attacked) / len(attacked), min(attacked)
    return None if clean == least else 1 - (clean - mean) / (clean - least)


def improved_robustness_ratio(clean: float, attacked: Sequence[float]) -> float | None:
    """I-RR = 1 - (A - A_mean)(A - A_min) / A^2; None if A is 0.

    Defects: like the drop rate it rewards low clean accuracy, and through the mean it depends on
    the weakest attack: a pool with noise in it looks robust.

    Raises:
        UsageError: there is no attack, or a value lies outside [0,1].
    """
    _checked(clean, attacked)
    mean, least = sum(attacked) / len(attacked), min(attacked)
    return 1 - (clean - mean) * (clean - least) / clean**2 if clean else None


def gain_over_random(accuracy: float, random: float | None) -> float | None:
    """Accuracy minus that of random selection on the same track with the same kind of labels.

    DD-Ranking's idea: the recipe of training drops out, and labels and augmentation are told apart.
    Its own scores also train on the set with hard labels and map the gain to [0,1]; this does
    neither.
    Defects: it depends on how lucky the random set was, and its ceiling falls as images are added.

    Raises:
        UsageError: a value lies outside [0,1].
    """
    if random is None:
        return None
    _checked(accuracy, [random])
    return accuracy - random
