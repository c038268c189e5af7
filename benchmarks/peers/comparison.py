"""What a comparison with another codebase consists of."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peer_results import Agreement
from torch import Tensor

Values = Mapping[str, Any]
"""By name: tensors or numbers."""


class PeerMissingError(Exception):
    """The peer is not there; the message says how to get it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A peer that is fetched."""

    name: str
    url: str
    files: tuple[str, ...]
    """What the driver imports."""

    def check(self, path: Path | None) -> None:
        """Refuse a folder that is not the peer.

        Raises:
            PeerMissingError: no path, or a file of the peer is not below it.
        """
        get = f"git clone {self.url} FOLDER, then call with --peer FOLDER"
        if path is None:
            raise PeerMissingError(f"{self.name} has no package: {get}")
        for name in self.files:
            if not (path / name).is_file():
                raise PeerMissingError(f"no {name} under {path}, so this is not {self.name}: {get}")

    def identity(self, path: Path | None) -> dict[str, str]:
        """The commit of the fetched copy, marked where its files were changed.

        Raises:
            PeerMissingError: the folder is no clone of its own.
        """
        assert path is not None
        head = self._git(path, "rev-parse", "HEAD") if (path / ".git").exists() else None
        if head is None:
            raise PeerMissingError(
                f"{path} is no git clone, so its commit is unknown: git clone {self.url} FOLDER"
            )
        changed = any(
            self._git(path, "rev-parse", f"HEAD:{name}") != self._git(path, "hash-object", name)
            for name in self.files
        )
        return {"commit": head + ("-changed" if changed else "")}

    @staticmethod
    def _git(path: Path, *words: str) -> str | None:
        done = subprocess.run(
            ["git", "-C", str(path), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A peer that is installed."""

    name: str
    url: str

    def check(self, path: Path | None) -> None:
        """Refuse an environment without the package.

        Raises:
            PeerMissingError: it is not installed, or a path was given.
        """
        if path is not None:
            raise PeerMissingError(f"{self.name} is a package and takes no --peer FOLDER")
        if importlib.util.find_spec(self.name) is None:
            raise PeerMissingError(
                f"{self.name} is not installed: pip install {self.name} (in an environment of its "
                "own; it is no dependency of ours)"
            )

    def identity(self, path: Path | None) -> dict[str, str]:
        """The installed version."""
        return {"version": importlib.metadata.version(self.name)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What one child process is asked for."""

    side: str
    """`variants.PEER`, or a way of ours."""
    peer: Path | None
    """Where a fetched peer lies."""
    seed: int
    """For work that draws random numbers."""
    store: Path
    """A folder for what all processes of a comparison share, such as trained students."""
    tiny: bool = False
    """A rehearsal of seconds, whose figures mean nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The work of one process."""

    work: Callable[[], Any]
    """What is measured."""
    values: Callable[[Any], Values]
    """What is compared, from the result of `work`; not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One workload on both sides."""

    peer: Repository | Package
    text: str
    driven: str
    prepare: Callable[[Call], Prepared]
    agreement: Callable[[str, list[Values], list[Values]], list[Agreement]]
    """Of a way of ours: its name, the peer's values and ours, those of each seed."""
    seeds: int = 1
    """How many seeds the processes take in turn."""
    facts: Callable[[str, list[Values]], dict[str, float]] = field(default=lambda _side, _v: {})
    """What is worth a line beside the ratios, of one side."""


def agreement(side: str, what: str, value: float, at_most: float | None = None) -> Agreement:
    """A difference, judged."""
    judged = None if at_most is None else value <= at_most
    return Agreement(side=side, what=what, value=value, at_most=at_most, agrees=judged)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, in float64."""
    a, b = ours.double().flatten(), theirs.double().flatten()
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))
