import math

import pytest
import torch
import torch.nn.functional as F

from robustdd_bench.errors import UsageError
from robustdd_bench.toolkit.dsa import (
    FAMILIES,
    STRATEGY,
    Augmentation,
    AugmentationParams,
    apply,
    apply_grouped,
    apply_table,
    grouped_table,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def fixed(family, *rows):
    return AugmentationParams(family, torch.tensor(rows, dtype=torch.float32))


def naive(x_BCHW, params):
    """DSA one image at a time, by pixel loops and by torch's own affine sampling."""
    out = []
    for b, image in enumerate(x_BCHW):
        value = params.values[b if len(params.values) > 1 else 0].double().tolist()
        out.append(NAIVE[params.family](image, value))
    return torch.stack(out)


def naive_color(image, value):
    brightness, saturation, contrast = value
    image = image + brightness
    grey = image.mean(0)
    image = torch.stack([(channel - grey) * saturation + grey for channel in image])
    return (image - image.mean()) * contrast + image.mean()


def naive_crop(image, value):
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            y, x = i + int(value[0]), j + int(value[1])
            if 0 <= y < height and 0 <= x < width:
                out[:, i, j] = image[:, y, x]
    return out


def naive_cutout(image, value):
    _, height, width = image.shape
    size_y, size_x = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    out = image.clone()
    for i in range(size_y):
        for j in range(size_x):
            y = min(max(i + int(value[0]) - size_y // 2, 0), height - 1)
            x = min(max(j + int(value[1]) - size_x // 2, 0), width - 1)
            out[:, y, x] = 0
    return out


def naive_flip(image, value):
    return (
        torch.stack([image[:, :, -1 - j] for j in range(image.shape[2])], 2) if value[0] else image
    )


def sample(image, theta):
    theta = torch.tensor([theta], dtype=torch.float64)
    grid = F.affine_grid(theta, (1, *image.shape), align_corners=False)
    return F.grid_sample(image[None], grid, padding_mode="zeros", align_corners=False)[0]


def naive_scale(image, value):
    return sample(image, [[value[0], 0, 0], [0, value[1], 0]])


def naive_rotate(image, value):
    cos, sin = math.cos(value[0]), math.sin(value[0])
    return sample(image, [[cos, -sin, 0], [sin, cos, 0]])


NAIVE = {
    "color": naive_color,
    "crop": naive_crop,
    "cutout": naive_cutout,
    "flip": naive_flip,
    "scale": naive_scale,
    "rotate": naive_rotate,
}


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (4, 1, 7, 10)])
def test_apply_equals_a_loop_over_images(family, siamese, shape):
    x = images(*shape)
    for seed in range(6):
        params = Augmentation((family,)).draw(shape[0], shape[2:], generator(seed), siamese=siamese)
        assert params.values.shape[0] == (1 if siamese else shape[0])
        torch.testing.assert_close(apply(x, params), naive(x, params), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_and_second_derivatives_equal_the_loops(family):
    params = Augmentation((family,)).draw(3, (6, 6), generator(1))
    weight, direction = images(3, 2, 6, 6, seed=2), images(3, 2, 6, 6, seed=3)
    found = []
    for function in (apply, naive):
        x = images(3, 2, 6, 6, seed=4).requires_grad_()
        loss = (function(x, params).tanh() * weight).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad((first * direction).sum(), x)
        found.append((first, second))
    assert found[0][1].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_gradients_pass_the_finite_difference_check(family):
    params = Augmentation((family,)).draw(2, (4, 4), generator(5))
    x = images(2, 2, 4, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: apply(x, params) ** 3, (x,))


# torch's own forward-mode module uses torch.jit.script when it is first imported
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_mode_and_vmap_work(family):
    params = Augmentation((family,)).draw(2, (4, 4), generator(6))
    x, tangent = images(3, 2, 2, 4, 4), images(3, 2, 2, 4, 4, seed=1)
    values = params.values.expand(3, -1, -1)

    def push(x, tangent, values):
        drawn = AugmentationParams(family, values)
        return torch.func.jvp(lambda x: apply(x, drawn) ** 2, (x,), (tangent,))[1]

    batched = torch.func.vmap(push)(x, tangent, values)
    for got, x_i, tangent_i in zip(batched, x, tangent, strict=True):
        step = 1e-6
        slope = (
            apply(x_i + step * tangent_i, params) ** 2 - apply(x_i - step * tangent_i, params) ** 2
        )
        torch.testing.assert_close(got, slope / (2 * step), rtol=0, atol=1e-7)


def test_color_brightens_then_saturates_then_raises_contrast():
    x = torch.tensor([[[[1.0, 3.0]], [[5.0, 7.0]]]])
    # +1: [2,4],[6,8]; grey 4,6; doubled: [0,2],[8,10]; mean 5; halved: [2.5,3.5],[6.5,7.5]
    got = apply(x, fixed("color", [1.0, 2.0, 0.5]))
    torch.testing.assert_close(got, torch.tensor([[[[2.5, 3.5]], [[6.5, 7.5]]]]))


def test_crop_shifts_and_fills_with_zero():
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3).repeat(2, 1, 1, 1)
    got = apply(x, fixed("crop", [1, 0], [0, -1]))
    assert got[0, 0].tolist() == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert got[1, 0].tolist() == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]


def test_cutout_clears_half_the_height_and_width_clipped_at_the_border():
    x = torch.ones(2, 1, 4, 4)
    got = apply(x, fixed("cutout", [2, 2], [0, 4]))
    assert got[0, 0].tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert got[1, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_flip_mirrors_columns_of_the_chosen_images():
    x = torch.tensor([[1.0, 2.0, 3.0]]).view(1, 1, 1, 3).repeat(2, 1, 1, 1)
    assert apply(x, fixed("flip", [1], [0]))[:, 0, 0].tolist() == [[3, 2, 1], [1, 2, 3]]


def test_scale_by_two_samples_between_pixels_and_zeros_outside():
    x = torch.tensor([[[[2.0, 4.0]]]])
    # columns -.5 and .5 (of half a width) go to -1 and 1: half a pixel beyond each border
    torch.testing.assert_close(apply(x, fixed("scale", [2.0, 1.0])), torch.tensor([[[[1.0, 2.0]]]]))


def test_rotation_by_a_right_angle_is_exact():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    params = AugmentationParams("rotate", torch.tensor([[math.pi / 2]], dtype=torch.float64))
    expected = torch.rot90(x, 1, (2, 3))
    torch.testing.assert_close(apply(x, params), expected, rtol=0, atol=1e-12)


def test_each_family_is_drawn_about_equally_often():
    source = generator()
    augmentation = Augmentation.parse(STRATEGY)
    counts = dict.fromkeys(FAMILIES, 0)
    for _ in range(1200):
        counts[augmentation.draw(1, (8, 8), source).family] += 1
    assert min(counts.values()) > 140
    assert max(counts.values()) < 260


@pytest.mark.parametrize(
    ("family", "low", "high"),
    [
        ("color", [-0.5, 0.0, 0.5], [0.5, 2.0, 1.5]),
        ("crop", [-4, -2], [4, 2]),
        ("cutout", [0, 0], [32, 12]),
        ("flip", [0], [1]),
        ("scale", [1 / 1.2, 1 / 1.2], [1.2, 1.2]),
        ("rotate", [-math.radians(15)], [math.radians(15)]),
    ],
)
def test_draws_fill_their_range(family, low, high):
    # 32 rows give shifts up to 4 and an even cutout; 13 columns shifts up to 2 and an odd cutout
    values = Augmentation((family,)).draw(4000, (32, 13), generator()).values
    low, high = torch.tensor(low), torch.tensor(high)
    assert (values >= low - 1e-6).all()
    assert (values <= high + 1e-6).all()
    assert (values.amin(0) <= low + 0.01 * (high - low)).all()
    assert (values.amax(0) >= high - 0.01 * (high - low)).all()


def test_draws_follow_their_generator_and_leave_the_global_one_alone():
    augmentation = Augmentation.parse(STRATEGY)
    before = torch.random.get_rng_state()
    first = [augmentation.draw(4, (8, 8), generator(9)) for _ in range(2)]
    assert first[0].family == first[1].family
    assert torch.equal(first[0].values, first[1].values)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_replaying_stored_parameters_is_bit_identical_backwards_too(family):
    params = Augmentation((family,)).draw(8, (16, 16), generator(2)).to("cpu")
    runs = []
    for _ in range(2):
        x = images(8, 3, 16, 16).float().requires_grad_()
        out = apply(x, params)
        runs.append((out, torch.autograd.grad((out**2).sum(), x)[0]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_siamese_parameters_fit_a_batch_of_any_size():
    params = Augmentation.parse(STRATEGY).draw(7, (8, 8), generator(3), siamese=True)
    x = images(5, 1, 8, 8)
    for count in (1, 2, 5):
        assert torch.equal(apply(x[:count], params), apply(x, params)[:count])


def test_grouped_application_equals_one_call_a_group_and_is_differentiable():
    augmentation, source, sizes = (
        Augmentation.parse(STRATEGY),
        generator(4),
        [3, 1, 4, 2, 5, 1, 2, 6],
    )
    params = [augmentation.draw(1, (8, 8), source, siamese=True) for _ in sizes]
    assert len({drawn.family for drawn in params}) > 2
    x = images(sum(sizes), 3, 8, 8).requires_grad_()
    grouped = apply_grouped(x, sizes, params)
    parts = zip(x.split(sizes), params, strict=True)
    looped = torch.cat([apply(part, drawn) for part, drawn in parts])
    torch.testing.assert_close(grouped, looped, rtol=0, atol=0)
    gradients = [torch.autograd.grad((y**2).sum(), x)[0] for y in (grouped, looped)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strategy", [STRATEGY, "rotate_color_flip", "none"])
def test_every_family_and_a_choice_equals_what_was_drawn(strategy):
    augmentation, source, sizes = Augmentation.parse(strategy), generator(4), [3, 1, 4, 2, 5, 1]
    families = augmentation.families
    params = [augmentation.draw(1, (8, 8), source, siamese=True) for _ in sizes]
    table = grouped_table(families, params)
    assert table.shape == (6, 4)
    x = images(sum(sizes), 3, 8, 8).requires_grad_()
    found = apply_table(x, sizes, families, table)
    expected = apply_grouped(x, sizes, params)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad((y**2).sum(), x)[0] for y in (found, expected)]
    assert torch.equal(*gradients)


def test_no_augmentation_is_the_identity():
    x = images(2, 1, 4, 4)
    params = Augmentation.parse("none").draw(2, (4, 4), generator())
    assert apply(x, params) is x
    assert torch.equal(apply_grouped(x, [1, 1], [params, params]), x)


@pytest.mark.parametrize("text", ["none", "color", "crop_flip", STRATEGY])
def test_strategies_round_trip_through_text(text):
    assert str(Augmentation.parse(text)) == text


def test_a_family_can_be_left_out():
    assert str(Augmentation.parse("crop_flip_scale").without("flip")) == "crop_scale"
    assert str(Augmentation.parse("flip").without("flip")) == "none"
    assert str(Augmentation.parse("crop").without("flip")) == "crop"


def test_an_unknown_family_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match="unknown augmentation 'colour'; did you mean 'color'"):
        Augmentation.parse("colour_crop")


@pytest.mark.parametrize("text", ["", "crop_", "none_crop"])
def test_ill_formed_strategies_are_refused(text):
    with pytest.raises(UsageError, match="unknown augmentation"):
        Augmentation.parse(text)


def test_a_repeated_family_is_refused():
    with pytest.raises(UsageError, match="twice"):
        Augmentation.parse("crop_crop")


def test_parameters_of_another_batch_size_are_refused():
    params = Augmentation.parse("crop").draw(3, (4, 4), generator())
    with pytest.raises(ValueError, match="drawn for 3 images, got 2"):
        apply(images(2, 1, 4, 4), params)
