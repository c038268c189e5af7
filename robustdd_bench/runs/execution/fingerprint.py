"""Whether two processes compute the same: harness, plugins, torch and CUDA, with their files.

The process that plans sends its fingerprint along; a worker that has another one refuses.
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from robustdd_bench import __version__
from robustdd_bench.errors import RunFailedError
from robustdd_bench.guard import BUILTIN
from robustdd_bench.plugins import Registry
from robustdd_bench.records.means import torch_version

DIGITS = 12
HASHED = (".py", ".toml", ".cpp")
ABSENT = "absent"


def fingerprint(registry: Registry) -> dict[str, str]:
    """What decides a result beside the plan, by what it is: "torch" to "2.6.0", JSON values."""
    import torch

    targets: dict[str, set[str]] = {}
    for entries in registry.entries.values():
        for entry in entries.values():
            targets.setdefault(entry.plugin, set()).add(_package(entry.target))
    found = {
        "python": platform.python_version(),
        "torch": torch_version(),
        "cuda": torch.version.cuda or ABSENT,
        "robustdd-bench": f"{__version__} {_files_sha256(['robustdd_bench'])}",
    }
    for name, info in registry.plugins.items():
        if info.status == "loaded" and name != BUILTIN:
            packages = targets.get(name, set()) | {_package(info.module)}
            files = _files_sha256(packages - {"robustdd_bench"})
            found[f"plugin {name}"] = f"{info.distribution} {info.version} {files}"
    return found


def refuse_other(planned: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse to compute what another kind of process planned.

    Args:
        planned: the fingerprint of the process that planned.
        here: the one of this process.

    Raises:
        RunFailedError: they differ; what differs is told of both.
    """
    differing = sorted(
        what for what in planned.keys() | here.keys() if planned.get(what) != here.get(what)
    )
    if differing:
        raise RunFailedError(
            f"the worker is not installed as the process that planned the run: planned with "
            f"{_told(differing, planned)}; the worker has {_told(differing, here)}. Install the "
            "same, and start it again if files have changed since"
        )


def _told(what: Iterable[str], of: Mapping[str, str]) -> str:
    return ", ".join(f"{one} {of.get(one, ABSENT)}" for one in what)


def _package(target: str) -> str:
    return target.partition(":")[0].partition(".")[0]


def _files_sha256(packages: Iterable[str]) -> str:
    """The first digits of a hash of the files of some packages: names and contents."""
    digest = hashlib.sha256()
    for package in sorted(packages):
        for name, path in sorted(_files(package)):
            digest.update(f"{package}/{name}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:DIGITS]


def _files(package: str) -> Iterator[tuple[str, Path]]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    for folder in spec.submodule_search_locations or ():
        for path in Path(folder).rglob("*"):
            if path.suffix in HASHED and path.is_file():
                yield path.relative_to(folder).as_posix(), path
    if spec.submodule_search_locations is None and spec.origin and Path(spec.origin).is_file():
        yield Path(spec.origin).name, Path(spec.origin)
