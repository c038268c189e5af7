"""A hub that is a folder: what `huggingface_hub.HfApi` answers, of repositories on the disk.

Each commit is a folder of files, `ORG/NAME/<40 digits>/`; its newest one is named in `main`. Every
call is held against the signature of the real client, so that a call it would refuse fails here.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
from huggingface_hub import errors

REAL = huggingface_hub.HfApi
LARGE = 10_000
"""Bytes from which on a file has a SHA-256."""


def _as_the_client_does(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, **arguments: Any) -> Any:
        inspect.signature(getattr(REAL, method.__name__)).bind(self, **arguments)
        assert arguments.pop("repo_type") == "dataset"
        self.calls.append(method.__name__)
        return method(self, **arguments)

    return call


def _answer(kind: type[Exception], status: int) -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} of the folder")
    error.response = response  # type: ignore[attr-defined]
    return error


class FolderHub:
    """The client, of a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[str] = []
        self.private: dict[str, bool] = {}
        self.refuses = 0
        """HTTP status that uploads get; 0: they are taken."""

    def _newest(self, repo_id: str) -> Path:
        if not (self.root / repo_id).is_dir():
            raise _answer(errors.RepositoryNotFoundError, 404)
        return self.root / repo_id / (self.root / repo_id / "main").read_text()

    def _commit(self, repo_id: str, revision: str | None) -> Path:
        newest = self._newest(repo_id)
        if revision in (None, "main"):
            return newest
        if not (newest.parent / str(revision)).is_dir():
            raise _answer(errors.RevisionNotFoundError, 404)
        return newest.parent / str(revision)

    def add(self, repo_id: str, files: dict[str, bytes]) -> str:
        """Make a commit of these files alone; its name."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        folder = self.root / repo_id / digest
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "main").write_text(digest)
        return digest

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Those of the newest commit."""
        folder = self._newest(repo_id)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    @_as_the_client_does
    def repo_exists(self, *, repo_id: str) -> bool:
        return (self.root / repo_id).is_dir()

    @_as_the_client_does
    def repo_info(self, *, repo_id: str, revision: str | None) -> SimpleNamespace:
        return SimpleNamespace(sha=self._commit(repo_id, revision).name)

    @_as_the_client_does
    def list_repo_files(self, *, repo_id: str, revision: str) -> list[str]:
        self._commit(repo_id, revision)
        return list(self.files(repo_id))

    @_as_the_client_does
    def get_paths_info(self, *, repo_id: str, paths: list[str], revision: str) -> list[Any]:
        found = []
        for name in paths:
            path = self._commit(repo_id, revision) / name
            if path.is_file():
                content = path.read_bytes()
                found.append(
                    huggingface_hub.RepoFile(
                        path=name,
                        size=len(content),
                        oid=hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
                        lfs={
                            "size": len(content),
                            "oid": hashlib.sha256(content).hexdigest(),
                            "pointerSize": 130,
                        }
                        if len(content) >= LARGE
                        else None,
                    )
                )
        return found

    @_as_the_client_does
    def hf_hub_download(self, *, repo_id: str, filename: str, revision: str) -> str:
        source = self._commit(repo_id, revision) / filename
        target = self.root / "cache" / revision / filename
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        return str(target)

    @_as_the_client_does
    def create_repo(self, *, repo_id: str, private: bool) -> None:
        self._may_write()
        self.private[repo_id] = private
        self.add(repo_id, {".gitattributes": b""})

    @_as_the_client_does
    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        allow_patterns: list[str],
        commit_message: str,
        parent_commit: str | None,
    ) -> SimpleNamespace:
        self._may_write()
        newest = self._newest(repo_id)
        assert parent_commit in (None, newest.name)
        new = {
            path.relative_to(folder_path).as_posix(): path.read_bytes()
            for path in Path(folder_path).rglob("*")
            if path.is_file()
        }
        taken = {k: v for k, v in new.items() if any(fnmatch(k, p) for p in allow_patterns)}
        oid = self.add(repo_id, self.files(repo_id) | taken)
        address = f"https://huggingface.co/datasets/{repo_id}/commit/{oid}"
        return SimpleNamespace(oid=oid, commit_url=address, commit_message=commit_message)

    def _may_write(self) -> None:
        if self.refuses == -1:
            raise errors.LocalTokenNotFoundError("no token")
        if self.refuses:
            raise _answer(errors.HfHubHTTPError, self.refuses)
