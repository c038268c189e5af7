"""Ranks: what cannot be told apart shares one, and soft labels have a division of their own."""

from __future__ import annotations

import numpy as np
import pytest
from made_up import EXAMPLES, STUDENTS, made_up, put, share

from robustdd_bench.board import ranking
from robustdd_bench.board.build import build
from robustdd_bench.board.compare import compare_standings
from robustdd_bench.board.pairing import common_seeds, outcomes
from robustdd_bench.board.publish import published
from robustdd_bench.board.ranking import divisions
from robustdd_bench.board.readme import section
from robustdd_bench.board.standings import standings
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits


def ranked(*records):
    """Division -> method -> (rank, tied)."""
    return {
        division.name: {row.standing.method: (row.rank, row.tied) for row in division.rows}
        for division in divisions(records)
    }


def test_standings_that_cannot_be_told_apart_share_a_rank() -> None:
    found = ranked(
        made_up("lead", share(60)),
        made_up("near", share(59)),
        made_up("far", share(30)),
        made_up("last", share(10)),
    )
    assert found == {
        "hard": {"lead": (1, True), "near": (1, True), "far": (3, False), "last": (4, False)}
    }


def test_pairing_sets_apart_what_the_same_share_of_other_examples_would_not() -> None:
    one_sided = ranked(made_up("lead", share(40)), made_up("other", share(30)))
    two_sided = ranked(made_up("lead", share(40)), made_up("other", share(30, first=60)))
    assert one_sided["hard"]["other"] == (2, False)
    assert two_sided["hard"]["other"] == (1, True)


def test_a_tie_is_with_the_leader_of_the_group_and_is_not_handed_on() -> None:
    # Three examples apart is no difference (they are missing from one resample in twenty), six is.
    records = [made_up(name, share(60 - 3 * i)) for i, name in enumerate("abcd")]
    assert ranked(*records)["hard"] == {
        "a": (1, True),
        "b": (1, True),
        "c": (3, True),
        "d": (3, True),
    }


def test_ranks_and_comparisons_rest_on_the_same_interval() -> None:
    rng = np.random.default_rng(0)
    records = [
        made_up(name, rng.random((STUDENTS, EXAMPLES)) < p, seed=seed)
        for name, p in (("x", 0.6), ("y", 0.55), ("z", 0.5))
        for seed in (0, 1, 2)
    ]
    entrants = standings(records)
    duels = ranking.Duels(entrants)
    for other in (1, 2):
        found = compare_standings(entrants[0], entrants[other])
        assert duels.interval(0, other) == found.differences[-1].interval
        assert duels.interval(0, other).low == -duels.interval(other, 0).high


def test_a_reference_gets_no_rank_and_ties_with_nobody() -> None:
    found = ranked(made_up("mine", share(50)), made_up("all", share(50), reference=True))
    assert found == {"hard": {"mine": (1, False), "all": (None, False)}}


def test_no_seed_in_common_is_no_tie() -> None:
    found = ranked(made_up("lead", share(60)), made_up("odd", share(59), seed=7))
    assert found["hard"]["odd"] == (2, False)


def test_common_seeds_that_point_the_other_way_set_nobody_below() -> None:
    lead = [made_up("lead", share(20)), made_up("lead", share(90), seed=1)]
    found = ranked(*lead, made_up("other", share(50)))
    assert found["hard"] == {"lead": (1, True), "other": (1, True)}


def test_ranking_does_not_depend_on_the_order_of_the_records() -> None:
    records = [made_up(name, share(n)) for name, n in (("a", 50), ("b", 50), ("c", 20))]
    assert divisions(records) == divisions(reversed(records))


def test_soft_labels_are_ranked_apart() -> None:
    records = [
        made_up("hard-one", share(50)),
        made_up("hard-two", share(20)),
        made_up("all", share(70), reference=True),
        made_up("soft-one", share(80), labels="soft"),
        made_up("soft-two", share(50), labels="soft"),
    ]
    assert ranked(*records) == {
        "hard": {"hard-one": (1, False), "hard-two": (2, False), "all": (None, False)},
        "soft": {"soft-one": (1, False), "soft-two": (2, False)},
    }


def test_one_configuration_with_both_kinds_of_labels_is_two_standings() -> None:
    records = [made_up("m", share(50)), made_up("m", share(80), seed=1, labels="soft")]
    assert [row.division for row in standings(records)] == ["soft", "hard"]
    assert ranked(*records) == {"hard": {"m": (1, False)}, "soft": {"m": (1, False)}}
    assert [row.label for row in standings(records)] == ["m (soft labels)", "m"]


def test_the_gain_is_over_random_selection_of_the_same_division() -> None:
    records = [
        made_up("random", share(30)),
        made_up("mine", share(48)),
        made_up("softened", share(80), labels="soft"),
    ]
    hard, soft = divisions(records)
    gains = {row.standing.method: row.scores.gain_headline for row in hard.rows}
    assert gains == pytest.approx({"random": 0, "mine": 18 / 90})
    assert soft.rows[0].scores.gain_headline is None


def test_scores_are_those_of_the_suite_at_the_headline_eps() -> None:
    record = made_up("m", share(30), clean=share(80), noise=share(60))
    ((row,),) = [division.rows for division in divisions([record])]
    clean, attacked = 80 / 90, [60 / 90, 80 / 90, 30 / 90]  # noise, fgsm, pgd
    mean = sum(attacked) / 3
    assert row.scores.drop_rate == pytest.approx(1 - 30 / 80)
    expected = 1 - (clean - mean) / (clean - 30 / 90)
    assert row.scores.robustness_ratio == pytest.approx(expected)


def test_scores_never_rank(monkeypatch) -> None:
    # The better one is worse by every score of the field but the gain.
    good = made_up("good", share(40), noise=share(40))
    poor = made_up("poor", share(20), clean=share(21))
    (division,) = divisions([poor, good])
    first, second = division.rows
    assert [first.standing.method, second.standing.method] == ["good", "poor"]
    assert (first.rank, second.rank) == (1, 2)
    assert first.scores.drop_rate > second.scores.drop_rate
    assert first.scores.robustness_ratio < second.scores.robustness_ratio
    assert first.scores.improved_robustness_ratio < second.scores.improved_robustness_ratio
    for name in ("drop_rate", "robustness_ratio", "improved_robustness_ratio"):
        monkeypatch.setattr(ranking, name, lambda *_: None)
    monkeypatch.setattr(ranking, "gain_over_random", lambda *_: None)
    again = divisions([poor, good])[0].rows
    assert [(r.standing.method, r.rank) for r in again] == [("good", 1), ("poor", 2)]


def test_outcomes_are_the_worst_case_of_the_records_bits() -> None:
    rng = np.random.default_rng(0)
    clean = rng.random((STUDENTS, EXAMPLES)) < 0.9
    noise, pgd = (clean & (rng.random((STUDENTS, EXAMPLES)) < 0.7) for _ in range(2))
    record = made_up("m", pgd, clean=clean, noise=noise)
    found = outcomes(record, [0.0, 0.05, 0.1])
    assert (found == np.stack([clean, clean & noise, clean & noise & pgd])).all()
    assert (outcomes(record, [0.1]) == found[2:]).all()
    assert (found[0, 1] == unpack_bits(record.students[1].clean).numpy()).all()


def altered(record, **changes):
    return standings([record.model_copy(update=changes)])[0]


def test_only_runs_on_the_same_examples_and_students_are_paired() -> None:
    record = made_up("m", share(50))
    (standing,) = standings([record])
    assert common_seeds(standing, standing) == (0,)
    data = record.data.model_copy(update={"evaluation_sha256": "0" * 64})
    with pytest.raises(UsageError, match="at seed 0 they were judged on different examples"):
        common_seeds(standing, altered(record, data=data))
    student = record.students[0].model_copy(update={"seed": 1})
    with pytest.raises(UsageError, match="their students have different seeds"):
        common_seeds(standing, altered(record, students=(student, record.students[1])))
    with pytest.raises(UsageError, match="one was judged by track fast@1"):
        common_seeds(standing, altered(record, track_sha256="0" * 64))
    with pytest.raises(UsageError, match=r"no distillation seed in common \(0 and 3\)"):
        common_seeds(standing, altered(record, seed=3))


def test_the_board_holds_rank_division_and_scores(tmp_path) -> None:
    for record in (
        made_up("lead", share(60)),
        made_up("near", share(59)),
        made_up("softened", share(80), labels="soft"),
    ):
        put(record, tmp_path)
    rows = build(tmp_path).tracks[0].rows
    shown = [(r.division, r.method, r.rank, r.tied) for r in rows]
    assert shown == [
        ("hard", "lead", 1, True),
        ("hard", "near", 1, True),
        ("soft", "softened", 1, False),
    ]
    assert rows[0].scores.model_dump() == {
        "drop_rate": pytest.approx(1 / 3),
        "robustness_ratio": pytest.approx(2 / 3),
        "improved_robustness_ratio": pytest.approx(1 - 1 / 9 * 1 / 3),
        "gain_clean": None,
        "gain_headline": None,
    }


def test_the_readme_shows_ranks_and_a_table_a_division(tmp_path) -> None:
    put(made_up("lead", share(60)), tmp_path)
    put(made_up("all", share(70), reference=True), tmp_path)
    text = section(published(tmp_path), tmp_path)
    assert "| rank | method |" in text
    assert "| 1 | lead |" in text
    assert "| - | all (reference) |" in text
    assert "labels:" not in text
    put(made_up("softened", share(80), labels="soft"), tmp_path)
    text = section(published(tmp_path), tmp_path)
    assert text.index("Hard labels:") < text.index("| 1 | lead |")
    assert text.index("| 1 | lead |") < text.index("Soft labels:")
    assert text.index("Soft labels:") < text.index("| 1 | softened |")
