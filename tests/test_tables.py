"""Tables in every format, read back and held against the board's content."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up import made_up, put, share

from robustdd_bench.board.build import board
from robustdd_bench.board.publish import Published
from robustdd_bench.board.rows import track_content
from robustdd_bench.board.views.captions import RULE
from robustdd_bench.board.views.tables import board_tables, score_tables
from robustdd_bench.cli.main import main
from robustdd_bench.protocol.tracks import parse_eps
from robustdd_bench.text.latex import escape, latex_text, unescape
from robustdd_bench.text.tables import (
    Column,
    Table,
    TableCell,
    TableRow,
    csv_text,
    markdown_text,
    plain,
)

HOSTILE = [
    "=HYPERLINK(1)",
    "+1",
    "-1",
    "@sum",
    "\t=1",
    "＝1",
    'a"b,c',
    "a|b",
    "a\\|b",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:1)",
    "`code` *bold* _under_ ~~x~~ $x$ &amp;",
    "50% of_a & {b} #1 ^2 \\input{/etc/passwd} ~",
    "[x]",
    "*x",
    "k--means''",
    "ε-MAT ± Łukasz Tramèr",
    "中文\u202e\U0001f600",
    "two\nlines\x1b[31m",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two leaders that are level, one that is worse, a reference, and one with soft labels."""
    folder = tmp_path_factory.mktemp("board")
    for seed in (0, 1, 2):
        put(made_up("lead", share(60), seed=seed, clean=share(85)), folder)
        put(made_up("near", share(59), seed=seed, clean=share(88)), folder)
        put(made_up("random", share(20), seed=seed, clean=share(88)), folder)
    put(made_up("all", share(90), reference=True), folder)
    put(made_up("softened", share(70), labels="soft"), folder)
    return folder


@pytest.fixture
def call(root, capsys):
    """What `robustdd board` prints on stdout, given its exit code."""

    def calling(*args: str, code: int = 0) -> str:
        assert main(["board", *args, "--board", str(root)]) == code
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out
        assert (printed.err == "") is (code == 0)
        return printed.out or printed.err

    return calling


def content(call) -> dict:
    (track,) = json.loads(call("show", "--format", "json"))["tracks"]
    return track


def records(text: str) -> list[dict[str, str]]:
    assert "\r" not in text
    return list(csv.DictReader(io.StringIO(text), strict=True))


def markdown_rows(text: str) -> list[list[list[str]]]:
    """Tables of cells, headings first; what is no table is left out."""
    tables = [part for part in re.split(r"\n\n(?!\|)", text) if "\n|" in f"\n{part}"]
    return [
        [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in table.splitlines()
            if line.startswith("|") and "---" not in line
        ]
        for table in tables
    ]


def latex_rows(text: str) -> list[list[str]]:
    """Rows of the tabulars in some LaTeX, of one length."""
    rows = re.findall(r"^    (.*) \\\\$", text, re.MULTILINE)
    return [re.split(r"(?<!\\)&", row) for row in rows if "multicolumn" not in row]


def balanced(text: str) -> bool:
    """Whether braces and dollars come in pairs, escaped ones apart."""
    depth = dollars = 0
    for character in re.sub(r"\\[\\{}$]", "", text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        dollars += character == "$"
        if depth < 0:
            return False
    return depth == 0 and dollars % 2 == 0


def test_csv_holds_the_numbers_of_the_board_to_the_last_digit(call) -> None:
    found = records(call("show", "--format", "csv"))
    rows = content(call)["rows"]
    assert [row["method"] for row in found] == [row["method"] for row in rows]
    for line, row in zip(found, rows, strict=True):
        assert (line["track"], line["version"]) == ("fast", "1")
        assert line["rank"] == ("" if row["rank"] is None else str(row["rank"]))
        for key in ("tied", "reference"):
            assert line[key] == {True: "true", False: "false"}[row[key]]
        assert line["division"] == row["division"]
        assert line["seeds"].split() == list(map(str, row["seeds"]))
        assert line["run_ids"].split() == [run["run_id"] for run in row["runs"]]
        assert int(line["images"]) == row["images"]
        for key, level in [("clean", row["clean"])] + [
            (f"eps_{eps:.2f}", level) for eps, level in zip((0.05, 0.1), row["robust"], strict=True)
        ]:
            for name in ("mean", "std_seeds", "std_students", "low", "high"):
                value = line[f"{key}_{name}"]
                assert (float(value) if value else None) == level[name]


def test_the_name_of_an_eps_reads_back_as_exactly_that_eps(root) -> None:
    track = board([], root)
    assert track.tracks == ()
    base = track_content([Published(made_up("a", share(50)), root / "x")], root)
    ladder = (8 / 255, 0.1, 0.123456789)
    row = base.rows[0].model_copy(update={"robust": (base.rows[0].robust[0],) * 3})
    bent = base.model_copy(update={"ladder": ladder, "headline_eps": 0.1, "rows": (row,)})
    keys = [c.key for c in board_tables(bent)["hard"].columns if c.key.startswith("eps_")]
    assert keys[:2] == ["eps_8/255", "eps_0.10"]
    assert [parse_eps(key.removeprefix("eps_")) for key in keys] == list(ladder)


def test_tables_of_tracks_with_other_ladders_share_one_csv() -> None:
    first = Table((Column("a", "a"), Column("b", "b")), (TableRow((plain(1), plain(None))),))
    second = Table((Column("a", "a"), Column("c", "c")), (TableRow((plain(2.5), plain(True))),))
    assert csv_text([first, second]) == "a,b,c\n1,,\n2.5,,true\n"
    assert csv_text([Table((Column("place", "place"),), ())]) == "place\n"


def test_markdown_shows_what_the_terminal_shows(call) -> None:
    hard, soft = markdown_rows(call("show", "--format", "md"))
    assert hard[0] == ["rank", "method", "images", "seeds", "clean", "0.05", "0.10 *"]
    assert [row[:2] for row in hard[1:]] == [
        ["1", "lead"],
        ["1", "near"],
        ["3", "random"],
        ["-", "all (reference)"],
    ]
    for shown, row in zip(hard[1:] + soft[1:], content(call)["rows"], strict=True):
        assert shown[4].startswith(f"{100 * row['clean']['mean']:.1f}")
    terminal = [" ".join(line.split()) for line in call("show").splitlines()]
    assert [" ".join(row) for row in hard] == terminal[1 : len(hard) + 1]
    assert call("show").splitlines()[-1] == RULE
    assert call("show", "--format", "md").splitlines()[-1] == RULE


def test_latex_is_a_float_a_division_and_marks_the_best_and_the_tied(call) -> None:
    text = call("show", "--format", "latex")
    assert text.isascii()
    assert balanced(text)
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:fast", "tab:fast-soft"]
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 2
    hard = latex_rows(text.split("\\end{table}")[0])
    assert {len(row) for row in hard} == {5}
    cells = {row[1].strip(): [cell.strip() for cell in row] for row in hard}
    assert cells["method"][4] == "0.10$^{*}$"
    # The headline: both that are level with the leader. Elsewhere: the highest mean as printed.
    assert [name for name, row in cells.items() if "textbf" in row[4]] == ["lead", "near"]
    assert [name for name, row in cells.items() if "textbf" in row[2]] == ["near", "random"]
    assert cells["near"][2] == "\\textbf{97.8 $\\pm$ 0.0}"
    assert [name for name, row in cells.items() if "dagger" in row[0]] == ["lead", "near"]
    assert cells["all (reference)"][0] == "--"
    assert "textbf" not in "".join(cells["all (reference)"])
    caption = re.search(r"\\caption\{(.*)\}", text)[1]
    assert "$^{\\dagger}$ not separated" in caption
    assert "here 3 ranked rows, 3 intervals of 95 \\% each" in caption
    for said in ("Bold", "$\\varepsilon$", "fgsm", "95 \\%"):
        assert said in caption


def test_the_scores_come_in_every_format(call) -> None:
    rows = {row["method"]: row for row in content(call)["rows"]}
    for line in records(call("show", "--scores", "--format", "csv")):
        scores = rows[line["method"]]["scores"]
        assert {key: line[key] for key in scores} == {
            key: "" if value is None else repr(value) for key, value in scores.items()
        }
    hard, soft = markdown_rows(call("show", "--scores", "--format", "md"))
    assert hard[0] == [
        *["rank", "method", "clean", "headline", "DR", "RR", "I-RR", "gain"],
        "gain *",
    ]
    assert hard[1][-2:] == ["-3.3", "+44.4"]
    assert soft[1][-2:] == ["-", "-"]
    latex = call("show", "--scores", "--format", "latex")
    assert "$-$3.3" in latex
    assert "$^{\\dagger}$ not separated" in latex
    assert balanced(latex)


def test_a_comparison_comes_in_every_format(call) -> None:
    args = ("compare", "lead", "random")
    levels = json.loads(call(*args, "--format", "json"))["levels"]
    assert call(*args, "--json") == call(*args, "--format", "json")
    found = records(call(*args, "--format", "csv"))
    for line, level in zip(found, levels, strict=True):
        assert (line["method_a"], line["method_b"]) == ("lead", "random")
        for key in ("eps", "a", "b", "difference", "p"):
            assert float(line[key]) == level[key]
        for end in ("low", "high"):
            assert float(line[f"interval_{end}"]) == level["interval"][end]
    ((headings, *rows),) = markdown_rows(call(*args, "--format", "md"))
    assert headings[:4] == ["eps", "lead", "random", "difference"]
    assert [row[0] for row in rows] == ["clean", "0.05", "0.10 *"]
    latex = call(*args, "--format", "latex")
    assert [row[0].strip() for row in latex_rows(latex)] == ["eps", "clean", "0.05", "0.10$^{*}$"]
    assert "$<$ 0.001" in latex
    assert "$-$3.3 & " in latex
    assert balanced(latex)


def test_formats_that_contradict_each_other_or_do_not_exist_are_refused(call) -> None:
    line = call("show", "--json", "--format", "csv", code=2)
    assert line == "error: --json and --format csv are two formats; choose one\n"
    assert "did you mean 'latex'?" in call("show", "--format", "latx", code=2)
    assert call("show", "--json", "--format", "json") == call("show", "--json")


def hostile_table(names) -> Table:
    columns = (Column("method", "method", number=False), Column("x", "<b>|_", headline=True))
    rows = [TableRow((plain(name), TableCell("1.0", {"": 1.0}))) for name in names]
    return Table(columns, tuple(rows), title="a | _b_ <i>", label="a_b}\\x")


def test_csv_keeps_formulas_of_strangers_from_running() -> None:
    found = [row["method"] for row in records(csv_text([hostile_table(HOSTILE)]))]
    assert not any(text.startswith(tuple("=+-@＝＋－＠\t\r")) for text in found)
    assert [text for text in found if text.startswith("'")] == [
        "'=HYPERLINK(1)",
        "'+1",
        "'-1",
        "'@sum",
        "'=1",
        "'＝1",
    ]
    assert 'a"b,c' in found
    assert not re.search("[\x00-\x08\x0b-\x1f]", csv_text([hostile_table(HOSTILE)]))


def test_markdown_of_strangers_stays_in_its_cell_and_is_no_markup() -> None:
    text = markdown_text([hostile_table(HOSTILE)])
    (rows,) = markdown_rows(text)
    assert {len(row) for row in rows} == {2}
    assert len(rows) == len(HOSTILE) + 1
    for cell, _ in rows[1:]:
        assert not re.search(r"(?<!\\)[<>`*_\[\]&$~]", cell.replace("\\\\", ""))
    assert text.startswith("a | \\_b\\_ \\<i\\>\n\n")


@given(st.text())
@example("- --- '' '''' `")
def test_any_text_is_harmless_in_latex(text) -> None:
    found = escape(text)
    assert found.isascii()
    assert balanced(found)
    bare = re.sub(r"\\[&%$#_{}]|\\[`'^~=.\"]\{", "", found)
    assert not re.search(
        r"[%#&_^~]", re.sub(r"\$[^$]*\$", "", bare).replace("~", "", text.count("\u00a0"))
    )
    assert "--" not in found or "–" in text or "—" in text
    assert not found.startswith(("[", "*"))


@pytest.mark.parametrize("text", ["Tramèr, Müller & Łukasz Çelik", "50% {a_b} #1 ^~\\", "é–ß—x"])
def test_latex_is_read_back(text) -> None:
    assert unescape(escape(text)) == text


def test_a_hostile_table_keeps_its_columns_in_latex() -> None:
    text = latex_text([hostile_table(HOSTILE)])
    assert {len(row) for row in latex_rows(text)} == {2}
    assert len(latex_rows(text)) == len(HOSTILE) + 1
    assert balanced(text)
    assert "\\label{tab:a-b-x}" in text
    assert "\\input" not in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_latex_compiles(root, tmp_path) -> None:
    content = board([Published(made_up("a", share(50)), root / "x")], root)
    (track,) = content.tracks
    tables = [*board_tables(track).values(), *score_tables(track).values(), hostile_table(HOSTILE)]
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        f"{latex_text(tables)}\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in (tmp_path / "paper.log").read_text(errors="replace")
