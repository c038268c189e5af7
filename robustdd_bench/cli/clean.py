"""`robustdd clean`: free the space that runs and stored experts take."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from robustdd_bench.cli.shared.arguments import out_option
from robustdd_bench.cli.shared.output import json_option, print_json, print_table
from robustdd_bench.errors import UsageError
from robustdd_bench.text.terminal import is_terminal, one_line, size_text


@click.command("clean")
@click.option(
    "--experts",
    is_flag=False,
    flag_value="all",
    default=None,
    metavar="[KEY]",
    help="Delete stored experts: those of KEY (see `robustdd show experts`), or all.",
)
@click.option("--runs", is_flag=True, help="Delete work folders of finished runs, and failed runs.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@out_option
@json_option
def clean(
    experts: str | None, runs: bool, dry_run: bool, yes: bool, out: Path, as_json: bool
) -> None:
    """Free space: leftover temporary files, stored experts, work folders and failed runs.

    Without --experts and --runs only what a killed process left half-written is deleted. Finished
    runs keep their records and sets, interrupted ones everything; a run that is going on is never
    touched. Deleted experts are trained again when a run needs them.
    """
    from robustdd_bench.runs.cleaning import Kept, find_garbage, free

    if not (dry_run or yes or is_terminal(sys.stdin)):
        raise UsageError("clean deletes files; add --yes, or --dry-run to see which")
    found = find_garbage(out, experts=experts, runs=runs)
    if not as_json:
        rows = [(item.kind, item.path, size_text(item.bytes)) for item in found.items]
        print_table(("what", "path", "size"), rows, right=("size",))
    question = f"Delete {len(found.items)} items, {size_text(found.bytes)}, below {out}?"
    if dry_run:
        items, kept = list(found.items), list(found.kept)
    elif not found.items or yes or click.confirm(question, err=True):
        freed = free(found, out)
        items, kept = freed.items, freed.kept
    else:
        items, kept = [], [Kept(item.path, "not confirmed") for item in found.items]
    total = sum(item.bytes for item in items)
    if as_json:
        print_json(
            {
                "out": out,
                "dry_run": dry_run,
                "items": [{"kind": i.kind, "path": i.path, "bytes": i.bytes} for i in items],
                "kept": [{"path": one.path, "reason": one.reason} for one in kept],
                "bytes": total,
            }
        )
        return
    for one in kept:
        print(one_line(f"kept {one.path}: {one.reason}"), file=sys.stderr)
    word = "would be deleted" if dry_run else "deleted"
    print(f"{len(items)} items, {size_text(total)} {word}", file=sys.stderr)
