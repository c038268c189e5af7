"""Sets of the hub, for commands that take a set."""

from __future__ import annotations

import sys
from pathlib import Path

from robustdd_bench.cli.shared.output import one_line
from robustdd_bench.errors import UsageError
from robustdd_bench.filenames import SET_FILE
from robustdd_bench.hub.address import HubAddress, is_address, parse_address
from robustdd_bench.text.terminal import size_text


def hub_address(source: Path, file_format: str) -> HubAddress | None:
    """The address that a word is; None if it is a path.

    Args:
        source: what was typed.
        file_format: the format that was named.

    Raises:
        UsageError: it is meant as an address and is none, or a foreign format was named.
    """
    text = str(source)
    if not is_address(text):
        return None
    if file_format != "robustdd":
        raise UsageError(
            f"{text}: of the hub only {SET_FILE} is read; leave --format out, or download the "
            "files and name one of them"
        )
    return parse_address(text)


def download(address: HubAddress) -> Path:
    """Where the set is on this machine now; stderr says which commit it is of.

    Raises:
        UsageError: nothing is at the address, or the client is not installed.
        RunFailedError: the hub cannot be reached.
    """
    from robustdd_bench.hub.download import fetch_set

    found = fetch_set(address)
    print(one_line(f"read {found.address}, {size_text(found.size)}"), file=sys.stderr, flush=True)
    return found.path
