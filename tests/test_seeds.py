"""Seeds by axis: pinned values, independent axes, and an untouched global generator."""

from __future__ import annotations

import pytest
import torch

from robustdd_bench.seeds import Seeds, derive_seed, isolated_rng


@pytest.mark.parametrize(
    ("axes", "seed"),
    [
        ((), 2858069222894195974),
        ((0,), 7520536977032167579),
        (("expert", 3), 2799226952394808121),
        ((0, "digits-ipc10", "mat", "expert", 3), 4583315801059449326),
        ((0, "digits-ipc10", "", "student", 0), 1774286317298352798),
    ],
)
def test_seeds_are_pinned_for_all_machines_and_versions(axes: tuple[str | int, ...], seed: int):
    assert derive_seed(*axes) == seed


def test_a_seed_is_63_bits_and_takes_part_in_a_generator() -> None:
    seeds = [derive_seed("x", i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds).bit_length() == 63
    torch.Generator().manual_seed(max(seeds))


def test_axes_do_not_run_into_one_another() -> None:
    tuples = [
        ("a", "b"),
        ("ab",),
        ("a,b",),
        ('a","b',),
        (1,),
        ("1",),
        (1, 2),
        (12,),
        ("a", "b", ""),
    ]
    assert len({derive_seed(*axes) for axes in tuples}) == len(tuples)


def test_every_axis_changes_the_seed() -> None:
    seeds = {
        Seeds(0, "t", "m").seed("p", 0),
        Seeds(1, "t", "m").seed("p", 0),
        Seeds(0, "u", "m").seed("p", 0),
        Seeds(0, "t", "n").seed("p", 0),
        Seeds(0, "t", "m").seed("q", 0),
        Seeds(0, "t", "m").seed("p", 1),
        Seeds(0, "t", "m").seed("p"),
    }
    assert len(seeds) == 7


def test_shared_seeds_are_the_same_for_every_method_and_differ_from_each_methods_own() -> None:
    one, two = Seeds(0, "t", "dc"), Seeds(0, "t", "mat")
    assert one.shared().seed("student", 1) == two.shared().seed("student", 1)
    assert one.shared().seed("student", 1) != one.seed("student", 1)
    assert one.shared().seed("student", 1) != Seeds(1, "t", "dc").shared().seed("student", 1)


def test_a_generator_is_fresh_on_every_call() -> None:
    seeds = Seeds(0, "t", "m")
    first = torch.rand(3, generator=seeds.generator("p", 1))
    assert torch.equal(first, torch.rand(3, generator=seeds.generator("p", 1)))
    assert not torch.equal(first, torch.rand(3, generator=seeds.generator("p", 2)))


def test_isolated_code_is_seeded_and_leaves_the_global_generator_untouched() -> None:
    before = torch.random.get_rng_state()
    with isolated_rng(5):
        first = torch.rand(4)
    with isolated_rng(5):
        second = torch.rand(4)
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())


def _draw_and_fail() -> None:
    torch.rand(1)
    raise ZeroDivisionError


def test_the_global_generator_is_restored_after_an_error() -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), isolated_rng(5):
        _draw_and_fail()
    assert torch.equal(before, torch.random.get_rng_state())
