"""What the images of a dataset may be used for, as its owners say: asked before a set is uploaded.

A loader says it in its attribute TERMS. It matters for sets that hold training images as they are,
such as random ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from robustdd_bench.citations import cites

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a dataset."""

    sharing: Literal["allowed", "unstated", "forbidden"]
    """Whether its images may be given to others."""
    said: str
    """What is said, in a clause that follows "its terms:"."""


UNKNOWN = Terms("unstated", "none are known here")
DIGITS = Terms("allowed", "CC BY 4.0, UCI Machine Learning Repository")
MNIST = Terms("allowed", "CC BY-SA 3.0")
FASHION_MNIST = Terms("allowed", "MIT licence")
CIFAR = Terms("unstated", "its page names no licence")
SVHN = Terms("unstated", "its page says for non-commercial use only, and names no licence")
IMAGENET = Terms(
    "forbidden",
    "non-commercial research and education, for those who were given access; images may not be "
    "passed on",
)


def described(bibtex: str, terms: Terms) -> Callable[[Function], Function]:
    """A decorator that gives a loader its CITATION and its TERMS."""

    def mark(function: Function) -> Function:
        function.TERMS = terms  # type: ignore[attr-defined]
        return cites(bibtex)(function)

    return mark


def terms_of(loader: object) -> Terms:
    """The terms of a loader's dataset; unknown ones where it does not say them."""
    found = getattr(loader, "TERMS", UNKNOWN)
    return found if isinstance(found, Terms) else UNKNOWN
