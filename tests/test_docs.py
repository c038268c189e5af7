"""The documentation holds together: navigation, links, places in the code, executed examples."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def script(name: str) -> ModuleType:
    """A module of scripts/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


hooks = script("site_hooks")
NAV = re.findall(
    r"(?:- |: )\"?([\w/-]+\.md)\"?$",
    (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2],
    re.MULTILINE,
)
OWN = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
SOURCES = [*(f"docs/{name}" for name in OWN), *hooks.PAGES.values()]


@cache
def text_of(source: str) -> str:
    """A source as Markdown."""
    return hooks.source_text(source)


@cache
def prose(source: str) -> str:
    """The Markdown of a source without its blocks of code."""
    return re.sub(r"^( *)(```|~~~).*?^ *\2", "", text_of(source), flags=re.DOTALL | re.MULTILINE)


def anchors(source: str) -> set[str]:
    """The places in a page: of headings, as code hosts and mkdocs name them."""
    found = set()
    for title in re.findall(r"^#+ (.*)$", prose(source), re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", title.lower()).strip()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found


def links(source: str) -> Iterator[str]:
    """The relative links of a page, code left out."""
    text = re.sub(r"`[^`\n]*`", "code", prose(source))
    for _, target, _ in hooks._LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            yield target


def broken(source: str) -> list[str]:
    """Links of a page that lead nowhere."""
    wrong = []
    for target in links(source):
        path, _, fragment = target.partition("#")
        found = (ROOT / source).parent / path if path else ROOT / source
        place = found.resolve()
        if not place.exists() or not place.is_relative_to(ROOT):
            wrong.append(target)
            continue
        inside = place.relative_to(ROOT).as_posix()
        if fragment and place.suffix == ".md" and fragment not in anchors(inside):
            wrong.append(target)
    return wrong


def test_the_navigation_holds_every_page_once_and_nothing_else() -> None:
    assert len(NAV) > 40
    assert sorted(NAV) == sorted([*OWN, *hooks.PAGES])


def test_pages_from_outside_the_folder_exist() -> None:
    missing = [source for source in hooks.PAGES.values() if not (ROOT / source).is_file()]
    assert missing == []


@pytest.mark.parametrize("source", SOURCES)
def test_relative_links_lead_to_files_and_places_that_are_there(source: str) -> None:
    assert broken(source) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, monkeypatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One thing\n\n[a](page.md#one-thing) [b](page.md#two) [c](none.md) [d](#one-thing)\n"
        "`[e](code.md)` [f](https://example.org/x) [g](../outside)\n\n```\n[h](code.md)\n```\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    assert broken("page.md") == ["page.md#two", "none.md", "../outside"]


@pytest.mark.parametrize("source", SOURCES)
def test_files_that_a_page_names_exist(source: str) -> None:
    parts = "robustdd_bench|plugins|baselines|scripts|tests|examples|benchmarks|docs"
    named = re.findall(rf"`((?:{parts})/[\w./-]*)`", prose(source))
    if source == "CHANGELOG.md":  # it tells of files that were there once
        named = []
    places = (ROOT, (ROOT / source).parent)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


@pytest.mark.parametrize("source", SOURCES)
def test_a_list_begins_after_an_empty_line(source: str) -> None:
    """Code hosts show a list without it, mkdocs shows a paragraph."""
    item = re.compile(r" *(?:[-*]|\d+\.) ")
    lines = prose(source).split("\n")
    wrong = [
        after
        for before, after in itertools.pairwise(lines)
        if item.match(after)
        and before.strip()
        and not item.match(before)
        and not before.startswith((" ", "#", "|", "<!--"))
        and not any(item.match(line) for line in _paragraph(lines, before))
    ]
    assert wrong == []


def _paragraph(lines: list[str], line: str) -> list[str]:
    """The lines from the last empty one to this one."""
    end = lines.index(line)
    start = max((i for i in range(end) if not lines[i].strip()), default=-1)
    return lines[start + 1 : end]


def test_the_python_of_the_first_minute_runs(tmp_path: Path) -> None:
    (code,) = re.findall(
        r"^```python\n(.*?)^```", text_of("docs/start.md"), re.DOTALL | re.MULTILINE
    )
    fast = str(ROOT / "tests" / "data" / "fast.toml")
    assert 'track="digits-ipc1"' in code
    code = code.replace('"digits-ipc1"', repr(fast))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| random | 20 |" in done.stdout
    assert 0 <= float(done.stdout.split()[-1]) <= 1


# --- the pages of the site ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "source", "page", "expected"),
    [
        ("docs/cli.md", "README.md", "index.md", "cli.md"),
        ("CONTRIBUTING.md#add-a-track", "README.md", "index.md", "contributing.md#add-a-track"),
        ("../README.md", "docs/cli.md", "cli.md", "index.md"),
        (
            "../../CONTRIBUTING.md",
            "docs/extend/attack.md",
            "extend/attack.md",
            "../contributing.md",
        ),
        ("../python.md#x", "docs/extend/attack.md", "extend/attack.md", "../python.md#x"),
        ("images/growth.png", "docs/speed.md", "speed.md", "images/growth.png"),
        ("docs/images/growth.png", "README.md", "index.md", "images/growth.png"),
        ("../examples/tracks", "docs/attacks.md", "attacks.md", "R/tree/main/examples/tracks"),
        ("../scripts/generate.py", "docs/a.md", "a.md", "R/blob/main/scripts/generate.py"),
        (
            "../leaderboard/results/t/record.json",
            "docs/scaling.md",
            "scaling.md",
            "leaderboard/results/t/record.json",
        ),
        (
            "set-of-another-paper.ipynb",
            "examples/notebooks/first-run.ipynb",
            "notebooks/first-run.md",
            "set-of-another-paper.md",
        ),
    ],
)
def test_a_link_leads_to_the_page_or_to_the_repository(
    target: str, source: str, page: str, expected: str
) -> None:
    assert hooks.site_link(target, source, page, "R") == expected


def test_lists_in_lists_are_indented_as_mkdocs_asks_and_code_is_left_alone() -> None:
    text = (
        "1. one\n   - inner [x](cli.md)\n\n   ```toml\n   a = 1\n     b = [x](cli.md)\n   ```\n\n"
        "```text\n  two [x](cli.md)\n```\n  - last\n"
    )
    assert hooks.site_text(text, "docs/a.md", "a.md", "R") == (
        "1. one\n    - inner [x](cli.md)\n\n"
        "    ```toml\n    a = 1\n      b = [x](cli.md)\n    ```\n\n"
        "```text\n  two [x](cli.md)\n```\n    - last\n"
    )


def test_links_outside_stay_as_they_are() -> None:
    text = "[a](https://example.org/x) [b](#here) ![c](images/growth.png) [d](mailto:x@example.org)"
    assert hooks.site_text(text, "docs/a.md", "a.md", "R") == text


def test_a_notebook_becomes_text_and_code() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Text."]},
        {"cell_type": "code", "source": ["x = 1"]},
    ]
    text = hooks.notebook_text(json.dumps({"cells": cells}))
    assert text == "# Title\n\nText.\n\n```python\nx = 1\n```\n"
    linked = hooks.with_notebook_link(text, "examples/notebooks/a.ipynb")
    assert linked.startswith("# Title\n\nThis page is a notebook: [a.ipynb](a.ipynb).")
    assert linked.endswith(text.partition("\n\n")[2])


def test_the_policy_stands_before_all_that_is_loaded() -> None:
    page = hooks.with_policy('<html><head><script src="a.js"></script></head></html>')
    assert page.index("Content-Security-Policy") < page.index("<script")
    assert "https://unpkg.com" not in hooks.without_hosts('load("https://unpkg.com/mermaid")')
