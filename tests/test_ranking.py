"""Ranks: how many rows are better, pair by pair, in a division."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from made_up import EXAMPLES, STUDENTS, made_up, put, share
from pages import committed_runs

from robustdd_bench.board import ranking
from robustdd_bench.board.build import build
from robustdd_bench.board.compare import compare_standings
from robustdd_bench.board.pairing import common_seeds, outcomes
from robustdd_bench.board.publish import current, published
from robustdd_bench.board.ranking import divisions
from robustdd_bench.board.standings import Standing, standings
from robustdd_bench.board.views.captions import RULE
from robustdd_bench.board.views.readme import section
from robustdd_bench.errors import UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits


def ranked(*records):
    """Division -> method -> (rank, tied)."""
    return {
        division.name: {row.standing.method: (row.rank, row.tied) for row in division.rows}
        for division in divisions(records)
    }


def thrice(method, headline, seeds=(0, 1, 2), **settings):
    """A method's records of three seeds, all with the same outcomes."""
    return [made_up(method, headline, seed=seed, **settings) for seed in seeds]


def on_ten_seeds(records):
    """The records on a track that ranks seeds 0 to 9."""
    track = records[0].track.model_copy(update={"ranked_seeds": 10})
    return [record.model_copy(update={"track": track}) for record in records]


def test_a_rank_is_one_more_than_the_rows_that_are_better() -> None:
    found = ranked(
        *thrice("lead", share(60)),
        *thrice("near", share(59)),
        *thrice("far", share(30)),
        *thrice("last", share(10)),
    )
    assert found == {
        "hard": {"lead": (1, True), "near": (1, True), "far": (3, False), "last": (4, False)}
    }


def test_pairing_separates_what_the_same_share_of_other_examples_would_not() -> None:
    one_sided = ranked(*thrice("lead", share(40)), *thrice("other", share(30)))
    two_sided = ranked(*thrice("lead", share(40)), *thrice("other", share(30, first=60)))
    assert one_sided["hard"]["other"] == (2, False)
    assert two_sided["hard"]["other"] == (1, True)


def test_being_level_is_not_handed_on_and_makes_no_groups() -> None:
    # Three examples apart is no difference (they are missing from one resample in twenty), six is.
    # Groups that their best row leads gave 1, 1, 3, 3; a chain of neighbours 1, 1, 1, 1.
    records = [r for i, name in enumerate("abcd") for r in thrice(name, share(60 - 3 * i))]
    (division,) = divisions(records)
    assert [(row.standing.method, row.rank) for row in division.rows] == [
        ("a", 1),
        ("b", 1),
        ("c", 2),
        ("d", 3),
    ]
    names = {row.standing.id: row.standing.method for row in division.rows}
    level = {row.standing.method: [names[i] for i in row.level_with] for row in division.rows}
    assert level == {"a": ["b"], "b": ["a", "c"], "c": ["b", "d"], "d": ["c"]}
    assert all(row.tied for row in division.rows)


def test_a_row_that_its_interval_does_not_separate_from_the_leader_has_rank_one() -> None:
    """digits-ipc10-transfer-mlp: MAT had rank 4, because another row opened a group above it."""
    runs = current(committed_runs(), "digits-ipc10-transfer-mlp")
    (division,) = divisions(runs)
    rows = {row.standing.method: row for row in division.rows}
    found = compare_standings(rows["dc"].standing, rows["mat"].standing)
    headline = found.differences[1 + found.track.threat.ladder.index(0.1)]
    assert (headline.interval.low, headline.interval.high) == pytest.approx(
        (-0.0031, 0.0772), abs=5e-5
    )
    assert {name: row.rank for name, row in rows.items()} == {
        "dc": 1, "dm": 1, "dsa": 1, "herding": 2, "mat": 1, "k-means": 3, "mtt": 4, "random": 4,
        "k-centre": 9, "full": None,
    }  # fmt: skip


@pytest.mark.parametrize("track", ["digits-ipc1", "digits-ipc10", "digits-ipc10-transfer-mlp"])
def test_published_ranks_are_what_comparing_every_pair_gives(track: str) -> None:
    (division,) = divisions(current(committed_runs(), track))
    rows = [row for row in division.rows if row.rank is not None]
    ahead: dict[str, set[str]] = {row.standing.id: set() for row in rows}
    level: dict[str, set[str]] = {row.standing.id: set() for row in rows}
    for one, other in itertools.combinations(rows, 2):
        found = compare_standings(one.standing, other.standing)
        interval = found.differences[found.levels.index(0.1)].interval
        first, second = one.standing.id, other.standing.id
        if interval.holds_zero:
            level[first].add(second)
            level[second].add(first)
        elif interval.low > 0:
            ahead[second].add(first)
        else:
            ahead[first].add(second)
    for row in rows:
        assert row.rank == 1 + len(ahead[row.standing.id])
        assert row.level_with == tuple(
            each.standing.id for each in rows if each.standing.id in level[row.standing.id]
        )


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_fewer_than_three_seeds_separate_nothing(seeds) -> None:
    assert ranking.LEAST_SEEDS == 3
    few = thrice("few", share(80), seeds)
    found = ranked(*few, *thrice("many", share(40)), *thrice("poor", share(5)))
    assert found["hard"] == {"few": (1, True), "many": (1, True), "poor": (2, True)}


def test_one_lucky_run_does_not_push_down_the_row_of_three_seeds() -> None:
    lucky = made_up("mat", share(66), settings=1)
    found = divisions([lucky, *thrice("mat", share(64)), *thrice("poor", share(20))])[0].rows
    assert [(len(row.standing.records), row.rank) for row in found] == [(1, 1), (3, 1), (3, 2)]


def test_a_row_changes_ranks_through_its_own_pairs_alone() -> None:
    rng = np.random.default_rng(7)
    shares = np.linspace(0.8, 0.2, 9)
    records = {
        f"m{i}": [
            made_up(f"m{i}", rng.random((STUDENTS, EXAMPLES)) < p, seed=seed)
            for seed in ((0, 1, 2) if i % 4 else (0, 1))
        ]
        for i, p in enumerate(shares)
    }
    everyone = [record for runs in records.values() for record in runs]
    whole = {row.standing.method: row for row in divisions(everyone)[0].rows}
    assert len({row.rank for row in whole.values()}) >= 3
    for left_out in records:
        rest = [r for name, runs in records.items() if name != left_out for r in runs]
        gone = whole[left_out].standing
        for row in divisions(rest)[0].rows:
            before = whole[row.standing.method]
            worse_than_gone = row.standing.id not in whole[left_out].level_with and (
                before.standing.headline.mean < gone.headline.mean
            )
            assert row.rank == before.rank - worse_than_gone
            assert set(row.level_with) == set(before.level_with) - {gone.id}


def test_standings_that_were_judged_on_other_examples_are_not_separated() -> None:
    records = thrice("other", share(20))
    data = records[0].data.model_copy(update={"evaluation_sha256": "0" * 64})
    moved = [record.model_copy(update={"data": data}) for record in records]
    twin = [r.model_copy(update={"data": data}) for r in thrice("twin", share(60))]
    found = ranked(*thrice("lead", share(80)), *moved, *twin)
    assert found["hard"] == {"lead": (1, True), "twin": (1, True), "other": (2, True)}


def test_a_standing_that_is_not_ranked_has_no_rank_and_counts_for_none(monkeypatch) -> None:
    monkeypatch.setattr(
        Standing, "ranked", property(lambda self: self.method not in ("late", "all"))
    )
    found = ranked(
        *thrice("late", share(80)),
        *thrice("mine", share(50)),
        *thrice("worse", share(20)),
        *thrice("all", share(85), reference=True),
    )
    assert found == {
        "hard": {
            "mine": (1, False),
            "worse": (2, False),
            "late": (None, False),
            "all": (None, False),
        }
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
    found = ranked(*thrice("mine", share(50)), *thrice("all", share(50), reference=True))
    assert found == {"hard": {"mine": (1, False), "all": (None, False)}}


def test_no_seed_in_common_separates_nobody() -> None:
    rows = [*thrice("lead", share(60)), *thrice("odd", share(9), (7, 8, 9))]
    found = ranked(*on_ten_seeds(rows))
    assert found["hard"] == {"lead": (1, True), "odd": (1, True)}


def test_common_seeds_that_point_the_other_way_than_the_means_decide() -> None:
    lead = [*thrice("lead", share(20)), *thrice("lead", share(90), (3, 4, 5, 6, 7))]
    found = ranked(*on_ten_seeds([*lead, *thrice("other", share(50))]))
    assert found["hard"] == {"lead": (2, False), "other": (1, False)}


def test_ranking_does_not_depend_on_the_order_of_the_records() -> None:
    records = [made_up(name, share(n)) for name, n in (("a", 50), ("b", 50), ("c", 20))]
    assert divisions(records) == divisions(reversed(records))


def test_soft_labels_are_ranked_apart() -> None:
    records = [
        *thrice("hard-one", share(50)),
        *thrice("hard-two", share(20)),
        *thrice("all", share(70), reference=True),
        *thrice("soft-one", share(80), labels="soft"),
        *thrice("soft-two", share(50), labels="soft"),
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
    good = thrice("good", share(40), noise=share(40))
    poor = thrice("poor", share(20), clean=share(21))
    (division,) = divisions([*poor, *good])
    first, second = division.rows
    assert [first.standing.method, second.standing.method] == ["good", "poor"]
    assert (first.rank, second.rank) == (1, 2)
    assert first.scores.drop_rate > second.scores.drop_rate
    assert first.scores.robustness_ratio < second.scores.robustness_ratio
    assert first.scores.improved_robustness_ratio < second.scores.improved_robustness_ratio
    for name in ("drop_rate", "robustness_ratio", "improved_robustness_ratio"):
        monkeypatch.setattr(ranking, name, lambda *_: None)
    monkeypatch.setattr(ranking, "gain_over_random", lambda *_: None)
    again = divisions([*poor, *good])[0].rows
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
    assert [row.level_with for row in rows] == [(rows[1].id,), (rows[0].id,), ()]
    assert rows[0].scores.model_dump() == {
        "drop_rate": pytest.approx(1 / 3),
        "robustness_ratio": pytest.approx(2 / 3),
        "improved_robustness_ratio": pytest.approx(1 - 1 / 9 * 1 / 3),
        "gain_clean": None,
        "gain_headline": None,
    }


def test_the_readme_shows_ranks_their_rule_and_a_table_a_division(tmp_path) -> None:
    put(made_up("lead", share(60)), tmp_path)
    put(made_up("all", share(70), reference=True), tmp_path)
    text = section(published(tmp_path), tmp_path)
    assert "| rank | method |" in text
    assert RULE in text
    assert "| 1 | lead |" in text
    assert "| - | all (reference) |" in text
    assert "labels:" not in text
    put(made_up("softened", share(80), labels="soft"), tmp_path)
    text = section(published(tmp_path), tmp_path)
    assert text.index("Hard labels:") < text.index("| 1 | lead |")
    assert text.index("| 1 | lead |") < text.index("Soft labels:")
    assert text.index("Soft labels:") < text.index("| 1 | softened |")
