"""Installed distributions and their entry points, read from their folders.

`importlib.metadata` says the same, but its import and search take a third of the processor time of
`robustdd --help`. Here folders on `sys.path` are listed and small files are read. Whatever is
unusual (zip files, eggs, other finders, lines that are not understood) is left to
`importlib.metadata`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_TARGET = re.compile(r"[\w.]+(:[\w.]+)?")
_ENDINGS = (".dist-info", ".egg-info")


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """An entry point of an installed distribution."""

    name: str
    value: str
    """"package.module" or "package.module:attribute"."""
    distribution: str
    version: str

    def load(self) -> Any:
        """Import what it names."""
        module, _, attribute = self.value.partition(":")
        found: Any = importlib.import_module(module.strip())
        return functools.reduce(getattr, filter(None, attribute.strip().split(".")), found)


class _UnusualError(Exception):
    """Something that only `importlib.metadata` knows to read."""


def entry_points(group: str) -> list[EntryPoint]:
    """The entry points of a group, of the first distribution of each name on `sys.path`."""
    try:
        return [point for folder in _folders().values() for point in _points(folder, group)]
    except _UnusualError:
        return _all_entry_points(group)


def version(distribution: str) -> str:
    """The version of a distribution; "" where it is not installed."""
    try:
        folder = _folders().get(_normalised(distribution))
        return "" if folder is None else _name_and_version(folder)[1]
    except _UnusualError:
        return _any_version(distribution)


def installed_commit(distribution: str) -> str:
    """The git commit that pip installed a distribution from; "" where it does not say one.

    pip writes it to direct_url.json (PEP 610) for `pip install git+https://...`.
    """
    try:
        folder = _folders().get(_normalised(distribution))
        text = None if folder is None else _read(os.path.join(folder, "direct_url.json"))
    except _UnusualError:
        return ""
    try:
        sha = json.loads(text or "{}")["vcs_info"]["commit_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return sha if isinstance(sha, str) and re.fullmatch("[0-9a-f]{40,64}", sha) else ""


def _all_entry_points(group: str) -> list[EntryPoint]:
    import importlib.metadata

    found = []
    for point in importlib.metadata.entry_points(group=group):
        facts = ("unknown", "") if point.dist is None else (point.dist.name, point.dist.version)
        value = point.value.partition("[")[0].strip()  # extras mean nothing to an import
        found.append(EntryPoint(point.name, value, *facts))
    return found


def _any_version(distribution: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _folders() -> dict[str, str]:
    """The metadata folder of each distribution, by normalised name; the first on the path wins.

    Raises:
        _UnusualError: there may be distributions that are not in a plain folder on `sys.path`.
    """
    for finder in sys.meta_path:
        name = getattr(finder, "__name__", "")
        if name != "PathFinder" and hasattr(finder, "find_distributions"):
            raise _UnusualError
    found: dict[str, str] = {}
    for place in sys.path:
        try:
            children = os.listdir(place or ".")
        except FileNotFoundError:
            continue
        except (OSError, TypeError, ValueError):  # a zip file, most likely
            raise _UnusualError from None
        if place.lower().rstrip("/\\").endswith(".egg"):
            raise _UnusualError
        for child in children:
            if not child.lower().endswith(_ENDINGS):
                continue
            stem, _, ending = child.rpartition(".")
            name = _normalised(stem.partition("-")[0])
            if not name or f".{ending}" not in _ENDINGS:
                raise _UnusualError
            found.setdefault(name, os.path.join(place, child))
    return found


def _points(folder: str, group: str) -> Iterable[EntryPoint]:
    text = _read(os.path.join(folder, "entry_points.txt"))
    if text is None or group not in text:
        return
    section, facts = "", None
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line.strip("[]")
        elif section == group:
            name, equals, value = (part.strip() for part in line.partition("="))
            if not equals or not _TARGET.fullmatch(value):
                raise _UnusualError
            facts = facts or _name_and_version(folder)
            yield EntryPoint(name, value, *facts)


def _name_and_version(folder: str) -> tuple[str, str]:
    found: dict[str, str] = {}
    # A checkout that was installed as editable has an .egg-info beside its packages.
    texts = (_read(os.path.join(folder, name)) for name in ("METADATA", "PKG-INFO"))
    for line in next(filter(None, texts), "").splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        found.setdefault(key.lower(), value.strip())
    if not found.get("name") or not found.get("version"):
        raise _UnusualError
    return found["name"], found["version"]


def _read(path: str) -> str | None:
    """A small text file; None where there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
        return None
    except (OSError, UnicodeDecodeError):
        raise _UnusualError from None
