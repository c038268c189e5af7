"""The commit of the code that runs: of the git checkout that it lies in, or that pip installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from robustdd_bench import __version__
from robustdd_bench.registry.installed import installed_commit

# What decides a result; published records, docs and tests do not make the code another one.
CODE = (":/robustdd_bench", ":/plugins", ":/baselines", ":/pyproject.toml")
_GIT_PLACES = frozenset(
    {
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_NAMESPACE",
        "GIT_PREFIX",
    }
)


def full_version() -> str:
    """The version, and the commit where it is known: "0.1.0 (commit 5908320a1b2c, changed)"."""
    found = source_commit()
    if found is not None:
        changed = ", changed" if found["dirty"] else ""
        return f"{__version__} (commit {found['sha'][:12]}{changed})"
    sha = installed_commit("robustdd-bench")
    return f"{__version__} (commit {sha[:12]})" if sha else __version__


def source_commit() -> dict[str, Any] | None:
    """The git commit of the code that runs, and whether it was changed since.

    None outside a checkout: also where an installed copy lies inside a repository, be it ours.
    """
    package = Path(__file__).resolve().parents[1]
    # Variables such as GIT_DIR, which hooks of git set, would lead to another repository.
    surroundings = {k: v for k, v in os.environ.items() if k not in _GIT_PLACES}

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *arguments],
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="surrogateescape",
                timeout=10,
                check=False,
                env=surroundings,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    root, commit = git("rev-parse", "--show-toplevel"), git("rev-parse", "HEAD")
    if root is None or commit is None or Path(root).resolve() / "robustdd_bench" != package:
        return None
    if git("ls-files", "--error-unmatch", "--", str(Path(__file__).resolve())) is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=all", "--", *CODE)
    return {"sha": commit, "dirty": changed is None or bool(changed)}
