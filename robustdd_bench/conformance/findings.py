"""What a check finds, and how checks are run: each on its own, whatever the others do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    passed: bool
    detail: str
    """What was seen, or what is wrong, in one line."""


class FailedCheckError(Exception):
    """A property does not hold; the text says which and why."""


class Interruption(KeyboardInterrupt):
    """What the checks raise to interrupt a method, as Ctrl-C would; never the user's own."""


Check = Callable[[], str]


def run_checks(checks: Mapping[str, Check]) -> list[Finding]:
    """Run every check; what one raises becomes its finding."""
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(name, True, check()))
        except FailedCheckError as error:
            findings.append(Finding(name, False, one_line(error)))
        except (Exception, Interruption) as error:
            findings.append(Finding(name, False, f"{type(error).__name__}: {one_line(error)}"))
    return findings


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks."""
    return " ".join(str(error).split())
