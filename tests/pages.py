"""Pages to look at: the committed board, hostile boards, and the browser."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from robustdd_bench.board.publish import Published, published
from robustdd_bench.board.schema import BoardContent
from robustdd_bench.board.views.page import page

BOARD = Path(__file__).parent.parent / "leaderboard"


@cache
def committed_runs() -> list[Published]:
    """The published runs of the committed board; reading them all takes seconds."""
    return published(BOARD)


CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (found := shutil.which(name))
    ),
    None,
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EVIL = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</style></script><script>document.title='owned'</script>",
    "{{ 7 * 7 }}{% raw %}",
    "turned \u202e round\x07",
    "' onmouseover='document.title=1",
)


def committed() -> dict[str, Any]:
    """The committed board as JSON: its tracks of the digits, since others still gain rows."""
    board = json.loads((BOARD / "leaderboard.json").read_text(encoding="utf-8"))
    board["tracks"] = [track for track in board["tracks"] if track["dataset"] == "digits"]
    return board


def text_of(board: dict[str, Any]) -> str:
    """The page of a board whose previews are the committed ones."""
    return page(BoardContent.model_validate_json(json.dumps(board)), BOARD)


def short(board: dict[str, Any]) -> dict[str, Any]:
    """The first two tracks, and two rows of each kind: audits look at every element."""
    tracks = []
    for track in board["tracks"][:2]:
        seen: Counter[object] = Counter()
        rows = []
        for row in track["rows"]:
            kind = row["division"], row["reference"], tuple(row["marks"])
            seen[kind] += 1
            rows += [row] * (seen[kind] <= 2)
        tracks.append(track | {"rows": rows})
    return board | {"tracks": tracks}


def hostile() -> dict[str, Any]:
    """The committed board with a stranger's texts wherever a text can be."""
    board = committed()
    evil = iter(EVIL * 1000)

    def bend(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: bend(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [bend(item, key) for item in value]
        free = {"summary", "plugin", "distribution", "version", "preset", "hardware", "command"}
        free |= {"network", "student_network", "preprocessing", "dataset", "torch", "harness"}
        free |= {"meaning", "augmentation", "evidence", "method", "commit"}
        return next(evil) if isinstance(value, str) and key in free else value

    board["tracks"] = bend(board["tracks"][:2])
    for track in board["tracks"]:
        for row in track["rows"]:
            row["config"] = {text: text for text in EVIL}
            row["marks"] = [*row["marks"], "reference"]
    for attack in board["tracks"][0]["attacks"]:
        attack["config"] = {text: text for text in EVIL}
    board["marks"] = {key: next(evil) for key in board["marks"]}
    return board


def with_people(board: dict[str, Any]) -> dict[str, Any]:
    """The board with a submission on the first run, and reported figures."""
    run = board["tracks"][0]["rows"][0]["runs"][0]
    run["submission"] = {
        "submission_version": 1,
        "by": "A & B <group>",
        "link": "https://example.org/code?a=1&b=2",
        "paper": "https://example.org/paper",
        "licence": "CC-BY-4.0",
    }
    board["reported"] = {
        "paper": {
            "reported_version": 1,
            "title": "A <paper>",
            "link": "https://example.org/p",
            "year": 2024,
            "note": "Another <protocol>.",
            "figures": [
                {
                    "method": "theirs",
                    "dataset": "cifar10",
                    "ipc": 10,
                    "labels": "soft",
                    "network": "ConvNet-3",
                    "clean": 0.654,
                    "robust": [
                        {"norm": "Linf", "eps": 8 / 255, "attack": "PGD-20", "accuracy": 0.123}
                    ],
                    "where": "Table 2",
                    "note": None,
                }
            ],
        }
    }
    return board


def crowded(methods: int) -> dict[str, Any]:
    """The committed board with that many methods on its first track, some with soft labels."""
    board = committed()
    track = board["tracks"][0]
    rows = []
    for index in range(methods):
        row = json.loads(json.dumps(track["rows"][index % len(track["rows"])]))
        row |= {"method": f"method-{index}", "id": f"method-{index}-abc", "reference": False}
        row |= {"rank": index + 1, "tied": False, "division": "soft" if index % 3 == 2 else "hard"}
        rows.append(row)
    track["rows"] = sorted(rows, key=lambda row: row["division"])
    return board


VOID = {"meta", "img", "link", "br", "hr", "input", "circle", "rect", "line", "path", "polyline"}


class Tree(HTMLParser):
    """Collects tags and texts, and asserts that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute stands twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]
