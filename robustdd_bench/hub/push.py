"""Upload an export to the hub: what is checked first, and what is uploaded.

Training images in a set are the dataset's, so the dataset's terms count. A repository that holds
another run may be cited already, so it is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.exports.card import BIBTEX, CARD
from robustdd_bench.exports.croissant import CROISSANT
from robustdd_bench.exports.parquet import PARQUET_FILE
from robustdd_bench.filenames import RECORD_FILE, SET_FILE, SET_PICTURE
from robustdd_bench.files import file_sha256, read_json, require_regular
from robustdd_bench.hub.address import HubAddress, check_repository
from robustdd_bench.hub.client import HubClient
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.terms import UNKNOWN, terms_of
from robustdd_bench.records.record import Record, read_record

FILES = (CARD, SET_FILE, RECORD_FILE, PARQUET_FILE, CROISSANT, BIBTEX, SET_PICTURE)
"""What an export of layout `hub` has; nothing else is uploaded."""
_MADE_BY_HUBS = {".gitattributes", CARD}


@dataclass(frozen=True, slots=True)
class Upload:
    """What would be uploaded."""

    folder: Path
    repository: str
    record: Record
    sizes: dict[str, int]
    """Bytes of each file, by its name."""
    notes: tuple[str, ...]
    """What its owner should know, in a clause each."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was uploaded."""

    address: HubAddress
    """With the new commit."""
    link: str
    """Where people see it."""
    new: bool
    """Whether the repository was made for it."""


def plan_upload(folder: Path, repository: str, registry: Registry) -> Upload:
    """Check an export, without the hub.

    Args:
        folder: what `robustdd export RUN --to DIR --as hub` wrote.
        repository: ORG/NAME.
        registry: what is installed, for the method and the dataset.

    Raises:
        UsageError: a file is missing or was changed, or the set may not be given to others.
    """
    check_repository(repository, repository)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; `robustdd export RUN --to DIR --as hub` writes one")
    for name in FILES:
        require_regular(folder / name)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder} has no {', no '.join(missing)}; write it with "
            f"`robustdd export RUN --to {folder} --as hub`"
        )
    record = read_record(folder / RECORD_FILE)
    _check_whole(folder, record)
    notes = _about_images(record, registry)
    if record.split != "test":
        notes.append("its figures are of the validation split")
    others = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in FILES
    )
    if others:
        listed = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        notes.append(f"left out, as they are of no export: {listed}")
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    return Upload(folder, repository, record, sizes, tuple(notes))


def _check_whole(folder: Path, record: Record) -> None:
    again = "export the run again"
    if record.status != "complete" or record.distilled is None:
        raise UsageError(f"run {record.run_id} failed; there is nothing to upload")
    if DistilledSet.load(folder / SET_FILE).sha256() != record.distilled.sha256:
        raise UsageError(f"{folder}: {SET_FILE} is not the set of {RECORD_FILE}; {again}")
    said = read_json(folder / CROISSANT)
    files = said.get("distribution") if isinstance(said, dict) else None
    hashes = [one.get("sha256") for one in files or () if isinstance(one, dict)]
    if hashes != [file_sha256(folder / PARQUET_FILE)]:
        raise UsageError(f"{folder}: {PARQUET_FILE} is not the file of {CROISSANT}; {again}")


def _about_images(record: Record, registry: Registry) -> list[str]:
    """Notes on images of the dataset in the set.

    Raises:
        UsageError: there are, or may be, some, and the dataset's terms forbid to pass them on.
    """
    dataset = record.track.data.dataset
    entry = registry.entries["datasets"].get(dataset)
    terms = UNKNOWN if entry is None else terms_of(entry.load())
    held = _real_images(record, registry)
    if held == "no" or terms.sharing == "allowed":
        return []
    about = f"images of {dataset} (its terms: {terms.said})"
    if terms.sharing == "forbidden":
        may = "holds" if held == "yes" else "may hold, for all that its record says,"
        raise UsageError(f"the set {may} {about}; it cannot be uploaded")
    holds = "holds" if held == "yes" else "may hold"
    return [f"the set {holds} {about}; upload it only if you may pass them on"]


def _real_images(record: Record, registry: Registry) -> str:
    """Whether the set holds training images: "yes", "no" or "unknown"."""
    method = registry.entries["distillers"].get(record.method.name)
    if method is not None and getattr(method.load(), "real_images", False) is True:
        return "yes"
    found = record.overlap
    if found is None:
        return "unknown"
    return "yes" if found.exact_train + found.near_train > 0 else "no"


def push(upload: Upload, *, private: bool, client: HubClient | None = None) -> Pushed:
    """Upload it in one commit; a new repository is made if there is none.

    Args:
        upload: from `plan_upload`.
        private: whether a new repository is private; one that is there stays as it is.
        client: the hub; None: the real one.

    Raises:
        UsageError: the repository holds something else, or the login is missing.
        RunFailedError: the hub cannot be reached.
    """
    hub = client or HubClient()
    repository, run = upload.repository, upload.record.run_id
    parent: str | None = None
    new = not hub.exists(repository)
    if new:
        hub.create(repository, private=private)
    else:
        parent = hub.commit(repository, None)
        names = set(hub.names(repository, parent))
        if RECORD_FILE in names:
            _, path = hub.fetch(repository, parent, RECORD_FILE)
            there = read_record(path).run_id
            if there != run:
                raise UsageError(
                    f"{repository} holds run {there}, and this is run {run}; name another "
                    "repository"
                )
        elif names - _MADE_BY_HUBS:
            raise UsageError(f"{repository} holds something else; name another repository")
    message = f"Run {run}: {upload.record.method.name} on {upload.record.track.id}"
    commit, link = hub.upload(repository, upload.folder, FILES, message, parent)
    return Pushed(HubAddress(repository, commit), link, new)
