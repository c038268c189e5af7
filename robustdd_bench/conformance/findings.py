"""What a check finds, and how checks are run: each on its own, whatever the others do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from robustdd_bench.guard import BUILTIN, guard, logged, plain_text, told


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


def run_checks(checks: Mapping[str, Check], plugin: str = BUILTIN) -> list[Finding]:
    """Run every check; what one raises becomes its finding.

    Args:
        checks: the checks by name.
        plugin: whose code they call.
    """
    findings = []
    with logged(lambda text: None):  # the checks tell it
        for name, check in checks.items():
            try:
                with guard(plugin, f"check {name!r}", passing=(Interruption,)):
                    detail = check()
                findings.append(Finding(name, True, detail))
            except FailedCheckError as error:
                findings.append(Finding(name, False, one_line(error)))
            except (Exception, Interruption) as error:
                findings.append(Finding(name, False, told(error)))
    return findings


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks."""
    return plain_text(error)
