"""Seed scheme 2 of a track: what a method gets does not give the seeds that it is judged with."""

from __future__ import annotations

import itertools

import pytest
import torch
from reachable import reachable
from small_runs import TRACK, example, plan_of, registry, run

from robustdd_bench.board.admission.rules import _seeds
from robustdd_bench.errors import UsageError
from robustdd_bench.protocol.tracks import parse_track
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.reuse import plan_again
from robustdd_bench.seeds import Seeds, derive_seed


def track_file(folder, name="fast", *, base="", scheme=2):
    text = TRACK.read_text(encoding="utf-8").replace('name = "fast"', f'name = "{name}"')
    lines = f"version = 1\nseed_scheme = {scheme}\n" + (f'base = "{base}"\n' if base else "")
    path = folder / f"{name}.toml"
    path.write_text(text.replace("version = 1\n", lines), encoding="utf-8")
    return path


def judged_with(record):
    return [(s.seed, [(a.attack, a.eps, a.seed) for a in s.attacks]) for s in record.students]


def test_scheme_1_is_the_default_and_changes_no_hash_and_no_seed(tmp_path):
    text = TRACK.read_text(encoding="utf-8")
    one = parse_track(text, "one")
    assert one.seed_scheme == 1
    written = parse_track(track_file(tmp_path, scheme=1).read_text(encoding="utf-8"), "two")
    assert written.sha256() == one.sha256()
    two = parse_track(track_file(tmp_path).read_text(encoding="utf-8"), "three")
    assert two.sha256() != one.sha256()
    seeds = Seeds(3, "fast", "m")
    assert seeds.for_method(1) == seeds
    context = RunContext(plan_of("random", seed=3), registry(), tmp_path, tmp_path)
    assert context.task.seeds == Seeds(3, "fast", "random")


def test_students_and_attacks_have_the_seeds_of_scheme_1_and_methods_have_others(tmp_path):
    before = example("random").record
    after = run(plan_of("random", track=str(track_file(tmp_path))), tmp_path).record
    assert judged_with(after) == judged_with(before)
    assert after.distilled.sha256 != before.distilled.sha256
    assert list(_seeds(after)) == []


def test_seeds_of_other_students_are_refused_under_both_schemes(tmp_path):
    record = run(plan_of("random", track=str(track_file(tmp_path))), tmp_path).record
    for found in (record, example("random").record):
        student = found.students[0].model_copy(update={"seed": 5})
        wrong = found.model_copy(update={"students": (student, *found.students[1:])})
        assert len(list(_seeds(wrong))) == 1


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_no_seed_of_the_judges_follows_from_the_object_that_a_method_gets(seed, tmp_path):
    plan = plan_of("random", seed=seed, track=str(track_file(tmp_path)))
    context = RunContext(plan, registry(), tmp_path, tmp_path)
    judges = Seeds(seed, "fast").shared()
    wanted = {judges.seed("student-init", r) for r in range(2)}
    wanted |= {judges.seed("attack", name, r) for name in ("noise", "fgsm") for r in range(2)}
    got = context.task.seeds
    numbers = [v for _, v in reachable(got.__class__, got) if isinstance(v, int)]
    bases = {got.base, got.shared().base, *numbers}
    assert seed not in bases
    made = {
        Seeds(base, track, method).seed("student-init", r)
        for base, track, method, r in itertools.product(
            bases, ("fast", ""), ("", "random"), range(2)
        )
    }
    made |= {
        Seeds(base, "fast").seed("attack", name, r)
        for base in bases
        for name in ("noise", "fgsm")
        for r in range(2)
    }
    assert not made & wanted
    # Under scheme 1 they do follow.
    assert Seeds(seed, "fast", "random").shared().seed("student-init", 0) in wanted


def test_the_global_generator_of_a_method_is_seeded_from_its_own_base(tmp_path):
    drawn = []
    for scheme in (1, 2):
        plan = plan_of("random", track=str(track_file(tmp_path, scheme=scheme)))
        with RunContext(plan, registry(), tmp_path, tmp_path).method():
            drawn.append(torch.initial_seed())
    base = derive_seed("methods", 2, 0)
    assert drawn == [
        Seeds(0, "fast", "random").seed("global", ""),
        Seeds(base, "fast", "random").seed("global", ""),
    ]


def test_runs_of_one_scheme_repeat_and_their_seeds_differ_by_seed_and_method():
    made = {
        Seeds(seed, "t", method).for_method(2).seed("p")
        for seed in range(20)
        for method in ("a", "b")
    }
    assert len(made) == 40
    assert Seeds(1, "t", "a").for_method(2) == Seeds(1, "t", "b").for_method(2).__class__(
        Seeds(1, "t", "b").for_method(2).base, "t", "a"
    )


def test_tracks_of_one_base_and_scheme_share_sets_and_others_are_refused(tmp_path):
    base = track_file(tmp_path)
    done = run(plan_of("random", track=str(base)), tmp_path)
    same = track_file(tmp_path, "same", base="fast")
    plan, _ = plan_again(registry(), done.folder, track=str(same))
    assert plan.track.name == "same"
    made = run(plan_of("random", track=str(same)), tmp_path).record
    assert made.distilled.sha256 == done.record.distilled.sha256
    other = track_file(tmp_path, "other", base="fast", scheme=1)
    with pytest.raises(UsageError, match="seed_scheme differ"):
        plan_again(registry(), done.folder, track=str(other))


def test_experts_are_shared_by_methods_under_scheme_2_and_not_between_schemes(tmp_path):
    track = str(track_file(tmp_path))
    for method in ("mtt", "mat"):
        assert run(plan_of(method, track=track), tmp_path).record.status == "complete"
    stores = sorted(path.name for path in (tmp_path / "store" / "experts").iterdir())
    assert len(stores) == 2  # natural and adversarial experts
    run(plan_of("mtt"), tmp_path)
    assert len(list((tmp_path / "store" / "experts").iterdir())) == 3


def test_a_scheme_that_is_unknown_is_refused():
    text = TRACK.read_text(encoding="utf-8").replace(
        "version = 1\n", "version = 1\nseed_scheme=3\n"
    )
    with pytest.raises(UsageError, match="key seed_scheme"):
        parse_track(text, "t")
