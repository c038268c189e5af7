"""What lies under OUT: stored experts, run folders, leftovers; listing it, and freeing space.

Nothing here imports torch: of an expert only the safetensors header is read, its weights never. No
symbolic link below OUT is followed or deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.filenames import LOCK_FILE, PLAN_FILE, RECORD_FILE, STORE_FOLDER, WORK_FOLDER
from robustdd_bench.files import file_lock

_KEY = re.compile(r"[0-9a-f]{16}")
_RUN_ID = re.compile(r"[0-9a-f]{12}")
_EXPERT = re.compile(r"expert-(\d{1,9})\.safetensors")
# What an atomic write leaves behind if it is killed: a dot, the file's name, eight characters.
_TEMPORARY = re.compile(r"\..+\.(?:json|jsonl|safetensors|png|svg|html|md)\.[a-z0-9_]{8}")
# `robustdd evaluate` writes into the store before it holds a run's lock.
_TEMPORARY_AGE_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredExperts:
    """The experts of one recipe on one task: one folder of the store."""

    key: str
    folder: Path
    experts: int
    """How many are whole."""
    description: Mapping[str, Any]
    """What shaped them, as the first whole expert tells it: recipe, seeds, network, data."""
    epochs: int | None
    """Epochs of the trajectories; None if no expert is whole."""
    weights: int | None
    """Parameters of the network; None if no expert is whole."""
    train_accuracy: float | None
    """Mean over the experts that tell it, in [0,1]."""
    bytes: int
    """Of everything in the folder."""
    written: float
    """When the newest file was written, in seconds since 1970."""
    damaged: tuple[str, ...]
    """One line for each file that is not a whole expert: its name and the reason."""

    def fact(self, section: str, name: str) -> Any:
        """A value of the description, or None."""
        found = self.description.get(section)
        return found.get(name) if isinstance(found, Mapping) else None


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be deleted."""

    kind: str
    """"experts", "work", "failed run" or "temporary file"."""
    path: Path
    bytes: int
    guard: Path | None = None
    """The run folder whose lock is held while it is deleted; None in the store."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that stays, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What `find_garbage` found."""

    items: tuple[Item, ...]
    kept: tuple[Kept, ...]

    @property
    def bytes(self) -> int:
        """Of all items."""
        return sum(item.bytes for item in self.items)


@dataclass(slots=True)
class Freed:
    """What `free` did."""

    items: list[Item] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of all that was deleted."""
        return sum(item.bytes for item in self.items)


def list_experts(out: Path) -> list[StoredExperts]:
    """The stored experts of an output folder, by key; an OUT without a store has none."""
    return [_read_experts(folder) for folder in _expert_folders(out)]


def _expert_folders(out: Path) -> list[Path]:
    store = out / STORE_FOLDER
    if store.is_symlink() or (store / "experts").is_symlink():
        return []
    return [entry for entry in _folders(store / "experts") if _KEY.fullmatch(entry.name)]


def _read_experts(folder: Path) -> StoredExperts:
    found: list[tuple[int, Path]] = []
    for path in _files(folder):
        match = _EXPERT.fullmatch(path.name)
        if match:
            found.append((int(match[1]), path))
    facts: list[_Expert] = []
    damaged = []
    for _, path in sorted(found):
        try:
            facts.append(_read_header(path))
        except ValueError as error:
            damaged.append(f"{path.name}: {error}")
    accuracies = [one.accuracy for one in facts if one.accuracy is not None]
    size, written = _measure(folder)
    return StoredExperts(
        key=folder.name,
        folder=folder,
        experts=len(facts),
        description=facts[0].description if facts else {},
        epochs=facts[0].shape[0] - 1 if facts else None,
        weights=facts[0].shape[1] if facts else None,
        train_accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        bytes=size,
        written=written,
        damaged=tuple(damaged),
    )


@dataclass(frozen=True, slots=True)
class _Expert:
    description: Mapping[str, Any]
    accuracy: float | None
    shape: tuple[int, int]


def _read_header(path: Path) -> _Expert:
    """What an expert's file tells of itself.

    Raises:
        ValueError: the file is not a whole expert; the text says why.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            names = list(file.keys())
            shape = tuple(file.get_slice("snapshots").get_shape()) if "snapshots" in names else ()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"not readable ({' '.join(str(error).split())})") from error
    if metadata.get("format") != "robustdd-expert-1" or len(shape) != 2:
        raise ValueError("not a stored expert")
    try:
        description = json.loads(metadata["description"])
        epochs = int(description["recipe"]["epochs"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"damaged metadata ({type(error).__name__}: {error})") from error
    if shape[0] != epochs + 1:
        raise ValueError(f"holds {shape[0] - 1} epochs, not {epochs}")
    accuracy = None
    with contextlib.suppress(KeyError, ValueError):
        accuracy = float(metadata["train_accuracy"])
    return _Expert(description, accuracy, (shape[0], shape[1]))


def find_garbage(out: Path, *, experts: str | None = None, runs: bool = False) -> Findings:
    """What can be deleted under OUT. Leftover temporary files always belong to it.

    Args:
        out: the output folder.
        experts: the key of stored experts, "all", or None for none of them.
        runs: whether to take the work folders of finished runs, and failed runs.

    Raises:
        UsageError: OUT holds neither a run nor a store, or there are no experts of that key.
    """
    folders = run_folders(out)
    stored = _expert_folders(out)
    if not folders and not stored:
        raise UsageError(f"{out} holds no runs, so nothing in it is deleted; see --out")
    if experts is not None and experts != "all":
        stored = [folder for folder in stored if folder.name == experts]
        if not stored:
            raise UsageError(f"no stored experts {experts!r} in {out}; see `robustdd show experts`")
    items: list[Item] = []
    kept: list[Kept] = []
    active = False
    for folder in folders:
        if is_locked(folder):
            active = True
            kept.append(Kept(folder, "a run is going on in it"))
            continue
        items += _of_run(folder, runs)
    shared = [*_temporary_files(out / STORE_FOLDER, old=True)]
    if experts is not None:
        taken = set(stored)
        shared = [item for item in shared if item.path.parent not in taken]
        shared += [Item("experts", folder, _measure(folder)[0]) for folder in sorted(taken)]
    if active:
        # Which experts a run uses is known to its method alone, so it keeps them all.
        kept += [Kept(item.path, "a run is going on that may use it") for item in shared]
    else:
        items += shared
    return Findings(tuple(items), tuple(kept))


def _of_run(folder: Path, runs: bool) -> Iterator[Item]:
    status = recorded_status(folder)
    if runs and status == "failed":
        yield Item("failed run", folder, _measure(folder)[0], folder)
        return
    work = folder / WORK_FOLDER
    finished = runs and status == "complete" and work.is_dir() and not work.is_symlink()
    if finished:
        yield Item("work", work, _measure(work)[0], folder)
    for item in _temporary_files(folder, old=False):
        if not finished or work not in item.path.parents:
            yield Item(item.kind, item.path, item.bytes, folder)


def recorded_status(folder: Path) -> str:
    """What a run's record says of it; empty where there is no readable one."""
    path = folder / RECORD_FILE
    if path.is_symlink() or not path.is_file():  # reading a pipe may never end
        return ""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    status = value.get("status") if isinstance(value, dict) else None
    return status if isinstance(status, str) else ""


def free(findings: Findings, out: Path) -> Freed:
    """Delete what was found; what has become locked or changed its nature meanwhile is kept.

    Args:
        findings: what `find_garbage` found.
        out: the same output folder.

    Raises:
        RunFailedError: something could not be deleted; what came before it is gone.
    """
    freed = Freed(kept=list(findings.kept))
    for item in findings.items:
        if item.guard is None and any(map(is_locked, run_folders(out))):
            freed.kept.append(Kept(item.path, "a run is going on that may use it"))
            continue
        with _lock(item.guard) as held:
            if not held:
                freed.kept.append(Kept(item.path, "a run is going on in it"))
            elif _inside(item.path, out):
                try:
                    _delete(item.path)
                except OSError as error:
                    reason = error.strerror or str(error)
                    raise RunFailedError(
                        f"cannot delete {item.path}: {reason}; "
                        f"{len(freed.items)} of {len(findings.items)} were deleted before"
                    ) from error
                freed.items.append(item)
    return freed


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)  # it does not follow links
    else:
        path.unlink(missing_ok=True)


def _inside(path: Path, out: Path) -> bool:
    """Whether a path still lies under OUT and no link is on the way."""
    if not path.exists() or path.is_symlink():
        return False
    return path.resolve() == out.resolve() / path.relative_to(out)


@contextlib.contextmanager
def _lock(folder: Path | None, *, unsure: bool = False) -> Iterator[bool]:
    """Try to hold a run's lock; tell whether it is held. Without a folder there is none to hold.

    Args:
        folder: the run's folder.
        unsure: what to tell where the lock cannot be tried.
    """
    if folder is None or not (folder / LOCK_FILE).exists():
        yield True
        return
    try:
        held = file_lock(folder / LOCK_FILE, 0)
    except OSError:
        yield unsure
        return
    try:
        yield held is not None
    finally:
        if held is not None:
            held.release()


def is_locked(folder: Path, *, unsure: bool = True) -> bool:
    """Whether a process holds the lock of a run's folder, so that a run is going on in it.

    Args:
        folder: the run's folder.
        unsure: the answer where the lock cannot be tried. What cannot be locked may be somebody's,
            so it is true where something is to be deleted.
    """
    with _lock(folder, unsure=not unsure) as held:
        return not held


def run_folders(out: Path) -> list[Path]:
    """OUT/<track>/<method>/<run id> with a plan or a record in it."""
    found = []
    for track in _folders(out):
        for method in _folders(track):
            for folder in _folders(method):
                known = any((folder / name).is_file() for name in (PLAN_FILE, RECORD_FILE))
                if known and _RUN_ID.fullmatch(folder.name):
                    found.append(folder)
    return found


def _folders(folder: Path) -> list[Path]:
    """The folders directly inside, by name; links are left out."""
    return [Path(entry) for entry in _scan(folder) if entry.is_dir(follow_symlinks=False)]


def _files(folder: Path) -> list[Path]:
    """The files directly inside, by name; links are left out."""
    return [Path(entry) for entry in _scan(folder) if entry.is_file(follow_symlinks=False)]


def _scan(folder: Path) -> Sequence[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:  # missing, no folder, or not ours to read
        return ()


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, links not followed."""
    for where, _, names in os.walk(folder):
        for name in sorted(names):
            yield Path(where) / name


def _temporary_files(folder: Path, *, old: bool) -> Iterator[Item]:
    if folder.is_symlink():
        return
    now = time.time()
    for path in _walk(folder):
        if _TEMPORARY.fullmatch(path.name) and not path.is_symlink():
            with contextlib.suppress(OSError):
                facts = path.lstat()
                if not old or now - facts.st_mtime > _TEMPORARY_AGE_S:
                    yield Item("temporary file", path, facts.st_size)


def _measure(folder: Path) -> tuple[int, float]:
    """Bytes below a folder, and when its newest file was written."""
    size, newest = 0, 0.0
    for path in _walk(folder):
        with contextlib.suppress(OSError):
            facts = path.lstat()
            size += facts.st_size
            newest = max(newest, facts.st_mtime)
    return size, newest
