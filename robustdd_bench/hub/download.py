"""A set of the hub as a file on this machine; see `robustdd evaluate hub:...`.

Only `distilled.safetensors` and `record.json` are read: nothing that is downloaded can run code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import RunFailedError
from robustdd_bench.filenames import RECORD_FILE, SET_FILE
from robustdd_bench.hub.address import HubAddress
from robustdd_bench.hub.client import HubClient
from robustdd_bench.records.record import read_record


@dataclass(frozen=True, slots=True)
class Fetched:
    """A set that was downloaded."""

    address: HubAddress
    """With the commit that the revision was."""
    path: Path
    size: int
    """In bytes."""


def fetch_set(asked: HubAddress, client: HubClient | None = None) -> Fetched:
    """Download a set, and check that it is what the hub and its record say.

    Args:
        asked: where it is.
        client: the hub; None: the real one.

    Raises:
        UsageError: nothing is there.
        RunFailedError: the hub cannot be reached, or the file is not what it should be.
    """
    hub = client or HubClient()
    commit = hub.commit(asked.repository, asked.revision)
    remote, path = hub.fetch(asked.repository, commit, SET_FILE)
    address = HubAddress(asked.repository, commit)
    if RECORD_FILE in hub.names(asked.repository, commit):
        _, beside = hub.fetch(asked.repository, commit, RECORD_FILE)
        record = read_record(beside)
        said = None if record.distilled is None else record.distilled.sha256
        if said != DistilledSet.load(path).sha256():
            raise RunFailedError(
                f"{address}: {SET_FILE} is not the set of {RECORD_FILE} beside it, whose hash is "
                f"{'missing' if said is None else said[:12]}; tell its owner"
            )
    return Fetched(address, path, remote.size)
