import math

import pytest
import torch

from robustdd_bench.toolkit.distances import class_means, gradient_distance, mean_distance

SHAPES = [(4, 3, 3, 3), (4,), (4,), (5, 4, 3, 3), (6, 7), (6,)]


def gradients(seed):
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=source, dtype=torch.float64) for shape in SHAPES]


def naive_gradient_distance(target, other):
    total = 0.0
    for a, b in zip(target, other, strict=True):
        if a.ndim == 1:
            continue
        for row_a, row_b in zip(a, b, strict=True):
            u, v = row_a.flatten().tolist(), row_b.flatten().tolist()
            dot = sum(x * y for x, y in zip(u, v, strict=True))
            norms = math.sqrt(sum(x * x for x in u)) * math.sqrt(sum(y * y for y in v))
            total += 1 - dot / (norms + 1e-6)
    return total


def test_gradient_distance_of_hand_computed_rows():
    target = [torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])]
    other = [torch.tensor([[6.0, 8.0], [0.0, 5.0], [0.0, -1.0]])]  # 0 + 1 + 2
    assert gradient_distance(target, other).item() == pytest.approx(3.0, abs=1e-6)


def test_gradient_distance_adds_epsilon_to_the_product_of_norms():
    target, other = [torch.tensor([[1e-3, 0.0]])], [torch.tensor([[1e-3, 0.0]])]
    assert gradient_distance(target, other).item() == pytest.approx(0.5, abs=1e-6)


def test_gradient_distance_of_a_zero_row_is_one_and_its_gradient_finite():
    target = [torch.tensor([[1.0, 2.0]])]
    other = torch.zeros(1, 2, requires_grad=True)
    distance = gradient_distance(target, [other])
    assert distance.item() == 1.0
    assert torch.isfinite(torch.autograd.grad(distance, other)[0]).all()


def test_gradient_distance_equals_a_loop_over_rows_in_float64():
    target, other = gradients(0), gradients(1)
    expected = naive_gradient_distance(target, other)
    assert gradient_distance(target, other).item() == pytest.approx(expected, rel=1e-13)


def test_vectors_contribute_nothing_to_the_gradient_distance():
    target, other = gradients(0), gradients(1)
    weights = [[t for t in group if t.ndim > 1] for group in (target, other)]
    assert torch.equal(gradient_distance(target, other), gradient_distance(*weights))
    assert gradient_distance([torch.ones(3)], [-torch.ones(3)]).item() == 0


def test_gradient_distance_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="zip"):
        gradient_distance(gradients(0), gradients(1)[:-1])


def test_mean_distance_of_hand_computed_classes():
    real = torch.tensor([[0.0, 0.0], [2.0, 4.0], [1.0, 1.0], [3.0, 3.0]])
    made = torch.tensor([[1.0, 1.0], [2.0, 5.0]])
    # means (1,2) and (2,2) against (1,1) and (2,5): 1 + 9
    assert mean_distance(class_means(real, [2, 2]), class_means(made, [1, 1])).item() == 10


@pytest.mark.parametrize("sizes", [[3, 3, 3], [1, 5, 3]])
def test_class_means_equal_a_loop(sizes):
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, start = [], 0
    for size in sizes:
        expected.append(sum(rows[start + i] for i in range(size)) / size)
        start += size
    torch.testing.assert_close(class_means(rows, sizes), torch.stack(expected))
