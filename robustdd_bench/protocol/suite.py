"""What robust accuracy is the worst case over: which attacks ran at which eps, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from robustdd_bench.protocol.tracks import eps_label


class Tried(Protocol):
    """An attack of a suite; see `robustdd_bench.protocol.tracks.AttackSpec`."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def on(self) -> Literal["all", "survivors"]:
        """Which examples it is tried on."""

    @property
    def at(self) -> Literal["ladder", "headline"]:
        """Which eps it is run at."""

    @property
    def examples(self) -> int | None:
        """How many examples it is tried on; None: all."""


def worst_case_over(attacks: Sequence[Tried], headline: float) -> str:
    """The attacks by the eps they ran at, for titles, legends and captions.

    Args:
        attacks: the suite, in its order.
        headline: the headline eps.

    Returns:
        E.g. "worst case over fgsm, pgd at every eps, and square (first 500 images) at 0.10 alone".
    """
    parts = []
    for at, where in (("ladder", "at every eps"), ("headline", f"at {eps_label(headline)} alone")):
        names = [_named(attack) for attack in attacks if attack.at == at]
        if names:
            parts.append(f"{', '.join(names)} {where}")
    return f"worst case over {', and '.join(parts)}"


def suite_note(attacks: Sequence[Tried], headline: float) -> str:
    """`worst_case_over`, with all that a reader of a caption has to know of the suite."""
    sentence = worst_case_over(attacks, headline)
    later = [attack.name for attack in attacks if attack.on == "survivors"]
    if later:
        sentence += f"; {', '.join(later)} only on images that the attacks before did not break"
    return f"{sentence}; what is broken at one eps counts as broken at every larger one"


def _named(attack: Tried) -> str:
    images = "image" if attack.examples == 1 else "images"
    return attack.name + (f" (first {attack.examples} {images})" if attack.examples else "")
