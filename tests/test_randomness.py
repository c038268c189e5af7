"""Noise per example: a hash of (seed, example, draw, place), and a good one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustdd_bench.seeds import ExampleGenerator, splitmix64

MASK = 2**64 - 1
SEEDS = st.integers(0, 2**63 - 1)


def naive_splitmix64(x: int) -> int:
    """The published finaliser, in unbounded integers."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def naive_bits(seed: int, index: int, draw: int, place: int) -> int:
    key = naive_splitmix64(naive_splitmix64(index) ^ (seed & MASK))
    stream = naive_splitmix64((key + draw * 0xBF58476D1CE4E5B9) & MASK)
    return naive_splitmix64((stream + place * 0x9E3779B97F4A7C15) & MASK)


def streams(count: int = 1000, seed: int = 1) -> ExampleGenerator:
    return ExampleGenerator(seed, torch.arange(count))


def test_splitmix64_gives_the_published_sequence():
    # The first outputs of the generator for state 1234567 (Vigna's reference code).
    gamma = 0x9E3779B97F4A7C15 - 2**64
    states = torch.tensor([1234567]) + gamma * torch.arange(3)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [value & MASK for value in splitmix64(states).tolist()] == expected


@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    index=st.integers(0, 2**62),
    draws=st.integers(0, 3),
    size=st.integers(1, 5),
)
@settings(max_examples=50, deadline=None)
def test_bits_equal_the_definition_in_unbounded_integers(seed, index, draws, size):
    generator = ExampleGenerator(seed, torch.tensor([index]), draws=draws)
    found = [value & MASK for value in generator.bits((size,))[0].tolist()]
    assert found == [naive_bits(seed, index, draws, place) for place in range(size)]


@given(seed=SEEDS, batch=st.integers(1, 17))
@settings(max_examples=25, deadline=None)
def test_noise_does_not_depend_on_the_batch(seed, batch):
    whole = ExampleGenerator(seed, torch.arange(17)).normal((2, 3))
    parts = [ExampleGenerator(seed, i).normal((2, 3)) for i in torch.arange(17).split(batch)]
    assert torch.equal(whole, torch.cat(parts))


@given(seed=SEEDS, keep=st.lists(st.integers(0, 9), max_size=10))
@settings(max_examples=25, deadline=None)
def test_selected_streams_go_on_where_they_were(seed, keep):
    index = torch.tensor(keep, dtype=torch.int64)
    generator = ExampleGenerator(seed, torch.arange(10) * 7)
    generator.uniform((4,))
    chosen = generator.select(index)
    assert torch.equal(chosen.index, generator.index[index])
    assert torch.equal(chosen.uniform((4,)), generator.uniform((4,))[index])


def test_a_mask_selects_like_indices():
    mask = torch.tensor([True, False, True, False])
    chosen = streams(4).select(mask)
    assert torch.equal(chosen.bits((5,)), streams(4).bits((5,))[mask])


def test_order_of_the_examples_does_not_matter():
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ExampleGenerator(3, order).bits((6,)), streams(50, 3).bits((6,))[order])


@pytest.mark.parametrize("shape", [(), (3,), (0,), (1, 4, 4)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_shape_and_an_empty_batch_work(count, shape):
    generator = streams(count)
    assert len(generator) == count
    assert generator.bits(shape).shape == (count, *shape)
    assert generator.uniform(shape).shape == (count, *shape)
    assert generator.normal(shape).shape == (count, *shape)
    assert generator.integers(shape, 3).shape == (count, *shape)
    assert generator.select(torch.zeros(count, dtype=torch.bool)).bits(shape).shape == (0, *shape)


def test_draws_seeds_examples_and_places_all_change_the_noise():
    generator = streams(100)
    first, second = generator.bits((50,)), generator.bits((50,))
    other = streams(100, seed=2).bits((50,))
    everything = torch.cat([first, second, other]).flatten()
    assert len(everything.unique()) == 3 * 100 * 50


def test_index_of_any_integer_type_gives_the_same_noise():
    short = ExampleGenerator(1, torch.arange(9, dtype=torch.int32))
    assert torch.equal(short.bits((3,)), streams(9).bits((3,)))


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    streams().normal((10,))
    assert torch.equal(before, torch.random.get_rng_state())


def test_each_bit_is_set_half_of_the_time():
    values = streams(400).bits((250,)).flatten()
    share = torch.stack([(values >> bit & 1).double().mean() for bit in range(64)])
    assert (share - 0.5).abs().max() < 5 * 0.5 / math.sqrt(len(values))


def test_flipping_one_bit_of_the_seed_flips_half_of_the_bits():
    reference = streams(200).bits((20,))
    for bit in range(0, 63, 7):
        changed = reference ^ ExampleGenerator(1 ^ (1 << bit), torch.arange(200)).bits((20,))
        share = sum((changed >> place & 1).double().mean() for place in range(64)) / 64
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(200 * 20 * 64)


@pytest.mark.parametrize("axis", ["example", "draw", "place", "seed"])
def test_neighbours_are_not_correlated(axis):
    generator = streams(300)
    x = generator.uniform((300,), -1, 1, torch.float64)
    y = {
        "example": x.roll(1, 0),
        "draw": generator.uniform((300,), -1, 1, torch.float64),
        "place": x.roll(1, 1),
        "seed": streams(300, seed=2).uniform((300,), -1, 1, torch.float64),
    }[axis]
    correlation = (x * y).mean() * 3  # the variance is 1/3
    assert correlation.abs() < 5 / math.sqrt(x.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_uniform_numbers_have_the_right_moments_and_bounds(dtype):
    values = streams(400).uniform((500,), -2, 3, dtype)
    assert values.dtype == dtype
    assert values.min() >= -2
    assert values.max() <= 3
    values = values.double()
    step = 5 * 2 * torch.finfo(dtype).eps  # a coarse grid shifts the mean by half a step
    assert abs(values.mean() - 0.5) < 5 * 5 / math.sqrt(12 * values.numel()) + step
    assert abs(values.var() - 25 / 12) < 0.02 + 2 * step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_unit_numbers_never_reach_one(dtype):
    values = streams(400).uniform((500,), dtype=dtype)
    assert values.min() >= 0
    assert values.max() < 1


def test_uniform_numbers_fill_every_cell_alike():
    values = streams(500).uniform((512,))
    counts = torch.histc(values, bins=256, min=0, max=1).double()
    chi2 = ((counts - 1000) ** 2 / 1000).sum()
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_normal_numbers_have_the_right_moments(dtype):
    values = streams(400).normal((500,), dtype).double()
    n = values.numel()
    assert values.isfinite().all()
    assert values.mean().abs() < 5 / math.sqrt(n)
    assert (values.var() - 1).abs() < 5 * math.sqrt(2 / n)
    assert ((values**4).mean() - 3).abs() < 5 * math.sqrt(96 / n)


@given(seed=SEEDS, high=st.integers(1, 2**31))
@settings(max_examples=50, deadline=None)
def test_integers_stay_in_their_range(seed, high):
    values = ExampleGenerator(seed, torch.arange(20)).integers((20,), high)
    assert values.dtype == torch.int64
    assert values.min() >= 0
    assert values.max() < high


def test_integers_take_every_value_alike():
    counts = torch.bincount(streams(700).integers((100,), 7).flatten(), minlength=7).double()
    chi2 = ((counts - 10_000) ** 2 / 10_000).sum()
    assert len(counts) == 7
    assert chi2 < 30  # 6 degrees of freedom; p about 4e-5


@pytest.mark.parametrize("high", [0, -1, 2**31 + 1])
def test_an_impossible_range_of_integers_is_refused(high):
    with pytest.raises(ValueError, match="high must lie in"):
        streams(1).integers((1,), high)


@pytest.mark.gpu
def test_noise_is_the_same_on_the_gpu():
    here, there = streams(64), ExampleGenerator(1, torch.arange(64, device="cuda"))
    assert torch.equal(here.bits((99,)), there.bits((99,)).cpu())
    assert torch.equal(here.uniform((99,), -0.3, 0.3), there.uniform((99,), -0.3, 0.3).cpu())
    assert torch.equal(here.integers((99,), 10), there.integers((99,), 10).cpu())
    torch.testing.assert_close(here.normal((99,)), there.normal((99,)).cpu())
