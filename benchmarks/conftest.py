"""What the benchmarks find is said at the end, a line each."""

from __future__ import annotations

import pytest

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def verdict_lines(pytestconfig: pytest.Config) -> list[str]:
    """The lines of the summary."""
    return pytestconfig.stash.setdefault(_LINES, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Measured and committed ratio of each benchmark, and the verdict."""
    lines = config.stash.get(_LINES, [])
    if lines:
        terminalreporter.section("ratios of this run beside the committed ones")
        for found in lines:
            terminalreporter.write_line(found)
        fell = sum("FELL" in found for found in lines)
        terminalreporter.write_line(f"{fell} of {len(lines)} fell by more than a fifth")
