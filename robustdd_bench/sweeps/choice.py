"""The rule by which a search chooses a method's settings."""

from __future__ import annotations

from collections.abc import Sequence

ROUNDING = 1e-9
"""Accuracies that differ by less are equal: they are means of shares of a whole number."""


def best_setting(clean: Sequence[float], robust: Sequence[float], clean_within: float) -> int:
    """The most robust of the settings that cost little clean accuracy.

    Args:
        clean: clean accuracy of each setting on validation images, shares from 0 to 1.
        robust: its robust accuracy at the headline eps.
        clean_within: how far below the best clean accuracy a setting may lie, a share.

    Returns:
        The place of the setting with the largest robust accuracy among those at most
        `clean_within` below the best clean accuracy; of equal ones that with more clean accuracy,
        then the first.

    Raises:
        ValueError: there is no setting, or the two are not alike in length.
    """
    if not clean or len(clean) != len(robust):
        raise ValueError("a choice needs settings, with both accuracies of each")
    least = max(clean) - clean_within - ROUNDING
    able = [place for place, accuracy in enumerate(clean) if accuracy >= least]
    return max(able, key=lambda place: (robust[place], clean[place], -place))
