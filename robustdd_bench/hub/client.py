"""The hub, through its own client: what is asked of it here, and its errors in our words.

The client finds the token of its own login (`hf auth login`); we take, keep and print none.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.files import file_sha256

EXTRA = "pip install 'robustdd-bench[hub]'"
_DATASET = "dataset"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub, as the hub tells it."""

    name: str
    size: int
    sha256: str | None
    """Of a large file; small ones have a git hash alone."""
    git_sha1: str

    def is_copy(self, path: Path) -> bool:
        """Whether a local file holds the same bytes."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return file_sha256(path) == self.sha256
        content = path.read_bytes()
        head = f"blob {len(content)}\0".encode()
        return hashlib.sha1(head + content, usedforsecurity=False).hexdigest() == self.git_sha1


class HubClient:
    """What we ask of the hub.

    Raises:
        UsageError: its client is not installed; in every method: the repository or revision is
            not there, or the login is missing.
        RunFailedError: in every method: the hub cannot be reached, or refuses.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("huggingface_hub") is None:
            raise UsageError(f"the hub needs huggingface_hub: {EXTRA}")
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        self._api: Any = huggingface_hub.HfApi(library_name="robustdd-bench")

    def commit(self, repository: str, revision: str | None) -> str:
        """The commit that a revision is now, 40 hexadecimal digits."""
        with _told(repository, revision):
            found = self._api.repo_info(repo_id=repository, revision=revision, repo_type=_DATASET)
        return str(found.sha)

    def exists(self, repository: str) -> bool:
        """Whether there is such a repository that the login may see."""
        with _told(repository, None):
            return bool(self._api.repo_exists(repo_id=repository, repo_type=_DATASET))

    def names(self, repository: str, commit: str) -> list[str]:
        """All files of a commit."""
        with _told(repository, commit):
            return list(
                self._api.list_repo_files(repo_id=repository, revision=commit, repo_type=_DATASET)
            )

    def fetch(self, repository: str, commit: str, name: str) -> tuple[RemoteFile, Path]:
        """Download one file into the client's cache, and hold it against the hub's hash of it.

        Raises:
            UsageError: there is no such file.
            RunFailedError: what arrived are other bytes.
        """
        with _told(repository, commit):
            found = self._api.get_paths_info(
                repo_id=repository, paths=[name], revision=commit, repo_type=_DATASET
            )
            if not found or not hasattr(found[0], "blob_id"):
                raise UsageError(f"{repository} at {commit[:12]} has no file {name}")
            lfs = found[0].lfs
            remote = RemoteFile(
                name, found[0].size, None if lfs is None else lfs.sha256, found[0].blob_id
            )
            path = Path(
                self._api.hf_hub_download(
                    repo_id=repository, filename=name, revision=commit, repo_type=_DATASET
                )
            )
        if not remote.is_copy(path):
            raise RunFailedError(
                f"{path} is not the file {name} that the hub has: its hash differs; delete it and "
                "try again"
            )
        return remote, path

    def create(self, repository: str, *, private: bool) -> None:
        """Make a new, empty repository."""
        with _told(repository, None):
            self._api.create_repo(repo_id=repository, private=private, repo_type=_DATASET)

    def upload(
        self, repository: str, folder: Path, names: Sequence[str], message: str, parent: str | None
    ) -> tuple[str, str]:
        """Upload files of a folder in one commit.

        Args:
            repository: which exists.
            folder: where the files are.
            names: of the files, below it.
            message: of the commit.
            parent: the commit that it must follow; None: whatever is newest.

        Returns:
            The new commit, and its address.
        """
        with _told(repository, None):
            done = self._api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                allow_patterns=list(names),
                commit_message=message,
                parent_commit=parent,
                repo_type=_DATASET,
            )
        address = str(done.commit_url).replace("/commit/", "/tree/")
        return str(done.oid), address


@contextmanager
def _told(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from huggingface_hub import errors

    try:
        yield
    except (UsageError, RunFailedError):
        raise
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{repository} is given on request only: ask for it on its page, then log in with "
            "`hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"the hub has no dataset {repository}, or it is private; check its name, or log in "
            "with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{repository} has no revision {revision}") from error
    except errors.LocalTokenNotFoundError as error:
        raise UsageError("you are not logged in at the hub: `hf auth login`") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise UsageError(
                f"the hub refuses {repository} (HTTP {status}): log in with `hf auth login`, with "
                "a token that may write where you upload"
            ) from error
        raise RunFailedError(f"the hub answers: {_line(error)}") from error
    except Exception as error:  # each version of the client has another library below it
        raise RunFailedError(
            f"the hub cannot be reached ({_line(error)}); try again later"
        ) from error


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
