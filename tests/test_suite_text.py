"""Captions name exactly which attacks ran at which eps."""

from __future__ import annotations

import pytest
from pages import BOARD, committed, committed_runs, text_of
from small_runs import example

from robustdd_bench.board.publish import current, newest
from robustdd_bench.board.rows import track_content
from robustdd_bench.board.views.tables import board_tables
from robustdd_bench.drawing.figures import attack_label
from robustdd_bench.protocol.suite import suite_note, worst_case_over
from robustdd_bench.protocol.tracks import AttackSpec
from robustdd_bench.report.content import facts
from robustdd_bench.report.reading import read_run

DIGITS = (
    "worst case over noise, fgsm, pgd, apgd-ce, apgd-dlr at every eps, and apgd-t, square at 0.10 "
    "alone"
)


def spec(name: str, **fields) -> AttackSpec:
    return AttackSpec(name=name, **fields)


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        ([spec("fgsm")], "worst case over fgsm at every eps"),
        (
            [spec("fgsm"), spec("square", at="headline", examples=500)],
            "worst case over fgsm at every eps, and square (first 500 images) at 2/255 alone",
        ),
        (
            [spec("a", at="headline"), spec("b"), spec("c", examples=1), spec("d", at="headline")],
            "worst case over b, c (first 1 image) at every eps, and a, d at 2/255 alone",
        ),
    ],
)
def test_each_attack_is_named_with_the_eps_it_ran_at(attacks, said) -> None:
    assert worst_case_over(attacks, 2 / 255) == said
    assert suite_note(attacks, 2 / 255) == (
        f"{said}; what is broken at one eps counts as broken at every larger one"
    )


def test_a_note_says_which_attacks_saw_survivors_alone() -> None:
    suite = [spec("fgsm"), spec("a", on="survivors"), spec("b", on="survivors", at="headline")]
    assert "; a, b only on images that the attacks before did not break; " in suite_note(suite, 0.1)


@pytest.mark.parametrize("name", ["digits-ipc1", "digits-ipc10", "digits-ipc10-transfer-mlp"])
def test_the_sentence_is_what_the_published_records_hold(name: str) -> None:
    for record in current(committed_runs(), name):
        track = record.track
        assert worst_case_over(track.attacks, track.threat.headline) == DIGITS
        for student in record.students:
            ran = {}
            for result in student.attacks:
                ran.setdefault(result.attack, []).append(result.eps)
            everywhere = [attack for attack, eps in ran.items() if eps == [0.05, 0.1, 0.15, 0.2]]
            headline = [attack for attack, eps in ran.items() if eps == [0.1]]
            assert everywhere == ["noise", "fgsm", "pgd", "apgd-ce", "apgd-dlr"]
            assert headline == ["apgd-t", "square"]
            assert len(ran) == 7


def test_captions_of_tables_page_readme_and_comparisons_say_it(call_board) -> None:
    track = track_content(newest(committed_runs(), "digits-ipc10"), BOARD)
    for table in board_tables(track).values():
        assert DIGITS in table.caption
        assert any(DIGITS in note for note in table.notes)
    for form in ("table", "md"):
        assert DIGITS in call_board("show", "digits-ipc10", "--format", form)
        assert f"W{DIGITS[1:]}" in call_board(
            "compare", "mat", "mtt", "--track", "digits-ipc10", "--format", form
        )
    for args in (("show", "digits-ipc10"), ("compare", "mat", "mtt", "--track", "digits-ipc10")):
        latex = call_board(*args, "--format", "latex")
        assert "apgd-t, square at 0.10 alone" in latex
    page = text_of(committed())
    assert page.count(DIGITS.replace(" eps", " ε")) >= 3 * 4  # summary, caption, two plots
    assert "worst case over the suite" not in page
    results = (BOARD.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert results.count(DIGITS) == 3


@pytest.fixture
def call_board(capsys, monkeypatch):
    """What `robustdd board` prints of the committed board, which is read once."""
    from robustdd_bench.board import publish
    from robustdd_bench.cli.main import main

    monkeypatch.setattr(publish, "published", lambda root: committed_runs())

    def calling(*args: str) -> str:
        assert main(["board", *args, "--board", str(BOARD)]) == 0
        return capsys.readouterr().out

    return calling


def test_reports_say_it_for_every_run() -> None:
    run = read_run(example("random").folder)
    said = dict(facts(run))
    track = run.plan.track
    assert said["Robust accuracy"] == suite_note(track.attacks, track.threat.headline)


def test_a_legend_says_that_an_attack_ran_at_the_headline_alone() -> None:
    assert attack_label(spec("pgd")) == "pgd alone"
    assert attack_label(spec("square", on="survivors", at="headline")) == (
        "and square, headline eps only"
    )


def test_no_page_or_text_says_worst_case_over_the_suite() -> None:
    root = BOARD.parent
    places = [root / "README.md", *root.glob("docs/**/*.md"), *root.glob("robustdd_bench/**/*")]
    found = [
        path.relative_to(root).as_posix()
        for path in places
        if path.suffix in (".py", ".j2", ".md", ".json")
        and "worst case over the suite" in " ".join(path.read_text(encoding="utf-8").split())
    ]
    assert found == []
