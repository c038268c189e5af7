"""The page without a browser: what it says, that it is whole, and that nothing escapes into it."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from pages import BOARD, EVIL, Tree, committed, crowded, hostile, text_of, with_people
from small_runs import example

from robustdd_bench.board.build import build
from robustdd_bench.board.publish import publish
from robustdd_bench.board.schema import BoardContent
from robustdd_bench.board.views import plots
from robustdd_bench.board.views.page import page
from robustdd_bench.board.views.sets import MAX_INLINE


@pytest.fixture(scope="module")
def board():
    return with_people(committed())


@pytest.fixture(scope="module")
def tree(board):
    return Tree(text_of(board))


def test_every_row_is_there_with_its_figures_and_commands(board, tree) -> None:
    words = " ".join(" ".join(tree.words).split())
    rows = [(track, row) for track in board["tracks"] for row in track["rows"]]
    assert len(rows) == 30
    marked = [a["data-row"] for a in tree.all("tr") if "data-row" in a]
    assert marked == [f"{track['track']}/{row['id']}" for track, row in rows]
    cards = {a["id"] for a in tree.all("details") if a.get("class") == "card"}
    assert cards == set(marked)
    for _, row in rows:
        for figure in (row["clean"], *row["robust"]):
            assert f"{100 * figure['mean']:.1f}" in words
            assert f"{100 * figure['low']:.1f}–{100 * figure['high']:.1f}" in words
        for run in row["runs"]:
            assert run["command"] in words


def test_ids_are_unique_and_every_link_leads_somewhere(board, tree) -> None:
    ids = [a["id"] for _, a in tree.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    places = [a["href"] for a in tree.all("a")]
    assert {link[1:] for link in places if link.startswith("#")} <= set(ids)
    outside = {link for link in places if link.startswith("https://")}
    rows = [row for track in board["tracks"] for row in track["rows"]]
    assert outside == {
        "https://example.org/code?a=1&b=2",
        "https://example.org/paper",
        "https://example.org/p",
        *(row["paper"]["link"] for row in rows if row.get("paper") and row["paper"]["link"]),
    }
    files = {link for link in places if not link.startswith(("#", "https://"))}
    assert [link for link in files if not (BOARD / link).is_file()] == []
    named = {name for _, a in tree.tags for name in (a.get("aria-labelledby") or "").split()}
    assert named
    assert named <= set(ids)


def test_ties_references_and_the_headline_are_marked(board, tree) -> None:
    text = text_of(board)
    first = board["tracks"][0]
    assert [row["rank"] for row in first["rows"]][:3] == [1, 1, 1]
    assert re.search(r'data-value="1">1<span class="tie"[^>]*>=</span>', text)
    assert text.count('<tbody class="references">') == len(board["tracks"])
    assert re.search(r'<th scope="col" class="num headline"[^>]*>ε 0.10 \*</th>', text)


def test_reported_figures_stand_apart(tree, board) -> None:
    text = text_of(board)
    before, _, after = text.partition('<section class="reported"')
    assert "theirs" not in before
    assert "not ranked" in after
    assert "12.3 <span" in after
    assert "8/255" in after
    assert "A &lt;paper&gt;" in after


def test_nothing_may_run_or_load_but_the_pages_own_script_and_style(tree, board) -> None:
    text = text_of(board)
    (policy,) = (
        a["content"] for a in tree.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, attributes in tree.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert "style" not in attributes, tag
    assert tree.all("link") == []
    assert all(not (a.get("src") or "").startswith("http") for _, a in tree.tags)


def test_texts_of_strangers_are_escaped_wherever_they_stand() -> None:
    text = text_of(hostile())
    tree = Tree(text)
    assert len(tree.all("script")) == 1
    assert len(tree.all("style")) == 1
    assert tree.all("img") == []
    for _, attributes in tree.tags:
        assert not any(name.startswith("on") for name in attributes)
    assert "\u202e" not in text
    assert "\x07" not in text
    words = " ".join(tree.words)
    for evil in EVIL[:4]:
        assert evil in words


def test_the_page_depends_on_the_published_runs_alone(tmp_path) -> None:
    pages = []
    for name, methods in (("one", ("random", "full")), ("two", ("full", "random"))):
        for method in methods:
            publish(example(method).folder, tmp_path / name)
        build(tmp_path / name)
        pages.append((tmp_path / name / "index.html").read_bytes())
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0]


def test_an_empty_board_is_a_page(tmp_path) -> None:
    build(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "Nothing is published yet." in text
    Tree(text)


def test_a_picture_is_in_the_page_once_and_a_large_one_stays_a_file(board, tmp_path) -> None:
    text = text_of(board)
    files = {row["runs"][0]["preview"] for track in board["tracks"] for row in track["rows"]}
    distinct = {(BOARD / file).read_bytes() for file in files}
    assert len(re.findall(r"url\(data:image/png", text)) == len(distinct) < len(files)
    run = publish(example("random").folder, tmp_path)
    content = build(tmp_path)
    picture = run.folder / "distilled.png"
    picture.write_bytes(picture.read_bytes() + bytes(MAX_INLINE))
    text = page(content, tmp_path)
    file = content.tracks[0].rows[0].runs[0].preview
    assert f'src="{file}"' in text
    assert "url(data:" not in text


def test_three_hundred_methods_are_a_page_of_moderate_size() -> None:
    text = text_of(crowded(300))
    assert len(text) < 6 * 2**20
    tree = Tree(text)
    assert sum(1 for a in tree.all("details") if a.get("class") == "card") == 320
    assert "Soft labels" in text


def test_labels_of_a_plot_cover_neither_points_nor_one_another() -> None:
    for track in BoardContent.model_validate_json((BOARD / "leaderboard.json").read_text()).tracks:
        plot = plots.scatter(track, plots.looks([track]))
        boxes = []
        for mark in plot.marks:
            wide = plots.LETTER * len(mark.row.method)
            start = mark.label_x - {"start": 0, "end": wide, "middle": wide / 2}[mark.anchor]
            boxes.append((start, mark.label_y - plots.LINE + 3, start + wide, mark.label_y + 3))
        points = [mark.points[0] for mark in plot.marks]
        for i, (left, top, right, bottom) in enumerate(boxes):
            assert left >= plot.left
            assert right <= plot.width
            for other in boxes[:i]:
                apart = left >= other[2] or other[0] >= right
                assert apart or top >= other[3] or other[1] >= bottom
            assert not any(left < x < right and top < y < bottom for x, y in points)


def test_a_point_lies_where_its_axes_say() -> None:
    (track, *_) = BoardContent.model_validate_json((BOARD / "leaderboard.json").read_text()).tracks
    for plot, of in (
        (plots.scatter(track, plots.looks([track])), lambda row: [(row.clean.mean, row.headline)]),
        (plots.curves(track, plots.looks([track])), None),
    ):
        y_axis = [(float(tick.text), tick.at) for tick in plot.y_ticks]
        (v0, a0), (v1, a1) = y_axis[0], y_axis[-1]
        for mark in plot.marks:
            wanted = (
                [mark.row.headline.mean]
                if of
                else [mark.row.clean.mean, *(found.mean for found in mark.row.robust)]
            )
            for (_, y), value in zip(mark.points, wanted, strict=True):
                assert v0 + (y - a0) / (a1 - a0) * (v1 - v0) == pytest.approx(100 * value)
