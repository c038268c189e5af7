"""Files of a revision or of a folder, listed before any is read: a submission and what it is onto.

Nothing of a revision is checked out: files are read from git's objects, so that no symbolic link is
followed, no attribute or hook of the submission runs, and its size is known beforehand.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.text.terminal import one_line

PLAIN = "100644"
KINDS = {
    PLAIN: "a file",
    "100755": "an executable file",
    "120000": "a symbolic link",
    "160000": "a submodule",
}
CHUNK = 2**20
MAX_HASHED = 2**31
"""Files of a folder that are larger are told apart by their size."""


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A file, before it is read."""

    mode: str
    """As git writes it; see `KINDS`."""
    content: str
    """Equal for equal contents within one kind of tree."""
    size: int


class Tree(Protocol):
    """Files by their path from the root of a repository, with "/" on every system."""

    entries: Mapping[str, TreeEntry]

    def extract(self, paths: Iterable[str], into: Path) -> None:
        """Write plain files below a folder; the caller has checked names and sizes."""


class GitTree:
    """The files of a revision.

    Raises:
        UsageError: it is no repository, or has no such revision.
    """

    def __init__(self, repository: Path, revision: str) -> None:
        self.repository = repository
        self.commit = commit(repository, revision)
        found = {}
        for line in git(repository, "ls-tree", "-r", "-l", "-z", self.commit).split(b"\0"):
            if line:
                facts, _, path = line.partition(b"\t")
                mode, _, name, size = facts.split()
                found[os.fsdecode(path)] = TreeEntry(
                    mode.decode(), name.decode(), 0 if size == b"-" else int(size)
                )
        self.entries: Mapping[str, TreeEntry] = found

    def extract(self, paths: Iterable[str], into: Path) -> None:
        """Write files below a folder, from git's objects."""
        with subprocess.Popen(
            _command(self.repository, "cat-file", "--batch"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for path in paths:
                process.stdin.write(self.entries[path].content.encode() + b"\n")
                process.stdin.flush()
                header = process.stdout.readline().split()
                if len(header) != 3:
                    raise RunFailedError(f"git cannot read {path} of {self.commit[:12]}")
                with _created(into / path) as file:
                    _copy(process.stdout, file, int(header[2]))
                process.stdout.read(1)
            process.stdin.close()


class FolderTree:
    """The files below a folder, as if it were `prefix` of a repository.

    Raises:
        UsageError: there is no such folder, or it cannot be read.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        if not folder.is_dir():
            raise UsageError(f"no folder {folder}")
        self.folder, self.prefix = folder, prefix
        try:
            self.entries: Mapping[str, TreeEntry] = dict(self._walk(folder))
        except OSError as error:
            raise UsageError(f"{folder} cannot be read: {error.strerror or error}") from error

    def _walk(self, folder: Path) -> Iterator[tuple[str, TreeEntry]]:
        for item in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if item.is_dir(follow_symlinks=False):
                yield from self._walk(Path(item.path))
                continue
            path = Path(item.path)
            facts = item.stat(follow_symlinks=False)
            mode = "special"
            content = ""
            if stat.S_ISLNK(facts.st_mode):
                mode = "120000"
                content = os.readlink(path)
            elif stat.S_ISREG(facts.st_mode):
                mode = "100755" if facts.st_mode & 0o111 else PLAIN
                content = f"{facts.st_size}"
                if facts.st_size <= MAX_HASHED:
                    with path.open("rb") as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
            name = f"{self.prefix}/{path.relative_to(self.folder).as_posix()}"
            yield name, TreeEntry(mode, content, facts.st_size)

    def extract(self, paths: Iterable[str], into: Path) -> None:
        """Copy files below a folder."""
        for path in paths:
            source = self.folder / path.removeprefix(f"{self.prefix}/")
            try:
                descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
                with open(descriptor, "rb") as file, _created(into / path) as copy:
                    _copy(file, copy, self.entries[path].size)
            except OSError as error:
                raise RunFailedError(f"cannot read {source}: {error.strerror or error}") from error


def _created(path: Path) -> IO[bytes]:
    """A new file in a folder that nobody else knows of; not atomic, there are many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    while size:
        content = source.read(min(size, CHUNK))
        if not content:
            raise RunFailedError("a file ended before its size")
        target.write(content)
        size -= len(content)


def commit(repository: Path, revision: str) -> str:
    """The hash of a revision's commit.

    Raises:
        UsageError: there is none.
    """
    words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    try:
        return git(repository, *words).decode().strip()
    except UsageError:
        git(repository, "rev-parse", "--git-dir")  # says so where this is no repository
        raise UsageError(f"{repository} has no revision {one_line(revision, 80)!r}") from None


def merge_base(repository: Path, one: str, other: str) -> str:
    """The hash of the commit that two commits share.

    Raises:
        UsageError: they share none.
    """
    try:
        return git(repository, "merge-base", one, other).decode().strip()
    except UsageError:
        raise UsageError(
            f"{one[:12]} and {other[:12]} have no commit in common; fetch the whole history"
        ) from None


def git(repository: Path, *words: str) -> bytes:
    """What a command of git that runs nothing of the repository prints.

    Raises:
        UsageError: git is missing, or says no.
    """
    try:
        done = subprocess.run(_command(repository, *words), capture_output=True, check=False)
    except OSError as error:
        raise UsageError(f"git cannot be run: {error.strerror or error}") from error
    if done.returncode:
        said = one_line(done.stderr.decode(errors="replace"), 200)
        raise UsageError(f"git {words[0]} in {repository}: {said or 'failed'}")
    return done.stdout


def _command(repository: Path, *words: str) -> list[str]:
    safe = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
    return ["git", "--no-replace-objects", *safe, "-C", str(repository), *words]
