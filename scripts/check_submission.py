"""Check a pull request that adds records to the board: every reason against it, at once.

    python scripts/check_submission.py                      HEAD against main
    python scripts/check_submission.py main..FETCH_HEAD     any two revisions
    python scripts/check_submission.py --board DIR --base DIR   two folders of boards

Run it from a checkout of the branch that the submission is to be merged into, never from the
submission's: what is run and imported is that checkout's. The submission is read as data from git's
objects; nothing of it is checked out, imported, executed or unpickled.

Exit codes: 0 nothing speaks against it (or it is no submission); 1 it is refused; 2 the call was
wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from robustdd_bench.board.admission.overlaps import DataAtHand
from robustdd_bench.board.pull_requests.check import (
    SubmissionReport,
    check_folders,
    check_revisions,
)
from robustdd_bench.board.pull_requests.trees import commit, git
from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.plugins import collect, get_plugin_manager
from robustdd_bench.text.terminal import one_line

TARGETS = ("origin/main", "main")
EXAMPLES = 500


def target_of(repository: Path) -> str:
    """The branch that submissions are merged into."""
    git(repository, "rev-parse", "--git-dir")  # says so where this is no repository
    for name in TARGETS:
        try:
            commit(repository, name)
        except UsageError:
            continue
        return name
    raise UsageError(f"{repository} has none of {', '.join(TARGETS)}; give --against")


def report_of(arguments: argparse.Namespace) -> SubmissionReport:
    """The report that was asked for."""
    registry = collect(get_plugin_manager())
    data = DataAtHand(registry, arguments.data_root)
    if (arguments.board is None) != (arguments.base is None):
        raise UsageError("--board and --base go together")
    if arguments.board is not None:
        return check_folders(arguments.board, arguments.base, registry, data)
    base, dots, head = arguments.revisions.partition("..")
    if not dots:
        base, head = arguments.against or target_of(arguments.repository), arguments.revisions
    return check_revisions(arguments.repository, head.lstrip(".") or "HEAD", base, registry, data)


def verify_commands(report: SubmissionReport) -> list[str]:
    """What repeats a part of each claim: one student, on some hundred test images."""
    return [
        f"robustdd verify {folder} --students 1 --examples "
        f"{min(EXAMPLES, record.data.evaluation_examples)}"
        for folder, record in report.runs
        if record.data is not None
    ]


def content(report: SubmissionReport) -> dict[str, object]:
    """The report as JSON values."""
    return {
        "refused": [{"path": one.path, "reason": one.reason} for one in report.refused],
        "runs": [folder for folder, _ in report.runs],
        "notes": report.notes,
        "next": [] if report.refused else verify_commands(report),
    }


def show(report: SubmissionReport) -> None:
    """Print the report for people, a line each."""
    for refusal in report.refused:
        print(one_line(f"refused: {refusal.path}: {refusal.reason}", 1000))
    for folder, record in report.runs:
        found = record.aggregates
        figures = (
            ""
            if found is None
            else (
                f": seed {record.seed}, clean {100 * found.clean.mean:.1f}, "
                f"robust {100 * found.headline.mean:.1f} at {found.headline_eps:g}"
            )
        )
        print(one_line(f"run: {folder}{figures}", 1000))
    for note in report.notes:
        print(one_line(f"note: {note}", 1000))
    if report.refused:
        print(f"refused for {len(report.refused)} reason{'s' * (len(report.refused) > 1)}")
    elif report.runs:
        print("nothing speaks against it; what it claims is still to be verified:")
        for command in verify_commands(report):
            print(f"    {command}")


def main(words: Sequence[str] | None = None) -> int:
    """Check, print, and return the exit code."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "revisions", nargs="?", default="HEAD", help="BASE..HEAD, or HEAD alone (default: HEAD)"
    )
    parser.add_argument("--against", help="the branch it goes into (default: origin/main or main)")
    parser.add_argument("--repository", type=Path, default=Path(), help="the clone (default: here)")
    parser.add_argument("--board", type=Path, help="folder of the submission's board")
    parser.add_argument("--base", type=Path, help="folder of the published board")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder that holds the datasets"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(words)
    try:
        report = report_of(arguments)
    except RobustDDError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if arguments.json:
        print(json.dumps(content(report), indent=2))
    else:
        show(report)
    return 1 if report.refused else 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
