"""Addresses of sets on the hub: `hub:ORG/NAME` or `hub:ORG/NAME@REVISION`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from robustdd_bench.errors import UsageError

PREFIX = "hub:"
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository of datasets, at a revision."""

    repository: str
    """ORG/NAME."""
    revision: str | None = None
    """A commit, tag or branch; None: the newest commit."""

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision}"
        return f"{PREFIX}{self.repository}{at}"


def is_address(text: str) -> bool:
    """Whether a word is meant as an address."""
    return text.startswith(PREFIX)


def parse_address(text: str) -> HubAddress:
    """Read `hub:ORG/NAME@REVISION`.

    Raises:
        UsageError: it is none.
    """
    repository, at, revision = text.removeprefix(PREFIX).partition("@")
    check_repository(repository, text)
    if at and not _REVISION.fullmatch(revision):
        raise UsageError(f"{text!r}: after @ comes a commit, tag or branch")
    return HubAddress(repository, revision if at else None)


def check_repository(repository: str, text: str) -> None:
    """Raise UsageError unless a word is ORG/NAME; `text` is what was typed."""
    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise UsageError(
            f"{text!r} names no repository of datasets; write ORG/NAME, for example lab/mat-cifar10"
        )
