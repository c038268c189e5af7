"""Foreign sets: files in the layouts of published codes become the pixels they were made from."""

from __future__ import annotations

import math

import pytest
import torch
from foreign_sets import (
    MEAN,
    STD,
    digits_like,
    normalised,
    rezipped,
    torch_bytes,
    write_dc,
    write_folder,
    write_mtt,
)
from small_runs import TRACK, registry

from robustdd_bench.errors import UsageError
from robustdd_bench.imports.convert import decode, describe, import_set
from robustdd_bench.imports.formats import FORMATS, STATISTICS, choose
from robustdd_bench.imports.readers import READERS
from robustdd_bench.protocol.loading import load_data
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import load_track

IMAGES, LABELS = digits_like(channels=3)
OTHER_IMAGES, _ = digits_like(channels=3, seed=1)
THREE = {"mean": ",".join(map(str, MEAN)), "std": ",".join(map(str, STD))}
NORMALISED = {"space": "normalised", **THREE}
MTT = {"labels": "hard", "learning_rate": "0.02"}


def read(path, name, train_images=None, **options):
    return import_set(path, choose(name, **options), train_images)


def same(made, images=IMAGES, labels=LABELS):
    """Whether a set holds these pixels, to rounding, and these labels."""
    torch.testing.assert_close(made.images, images, rtol=0, atol=1e-6)
    assert torch.equal(made.labels, labels)
    return True


# --- DC, DSA, DM and BEARD ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dc", "beard"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("numpy", [1, 2])
def test_dc_files_of_old_and_new_torch_and_numpy_become_pixels(name, numpy, legacy, tmp_path):
    path = write_dc(tmp_path / "res.pt", (normalised(IMAGES), LABELS), numpy=numpy, legacy=legacy)
    made = read(path, name, **NORMALISED)
    assert same(made)
    assert made.preprocessing == Preprocessing("normalise", MEAN, STD)
    assert (made.learning_rate, made.augmentation) == (None, None)


def test_students_see_what_the_file_holds(tmp_path):
    held = normalised(IMAGES)
    made = read(write_dc(tmp_path / "res.pt", (held, LABELS)), "dc", **NORMALISED)
    seen = made.preprocessing.layer(made.images)(made.images)
    torch.testing.assert_close(seen, held, rtol=0, atol=1e-5)


def test_raw_pixels_are_taken_as_they_are_and_keep_the_preprocessing_of_the_track(tmp_path):
    made = read(write_dc(tmp_path / "res.pt", (IMAGES, LABELS)), "dc", space="raw")
    assert torch.equal(made.images, IMAGES)
    assert made.preprocessing is None


def test_of_several_sets_one_has_to_be_named(tmp_path):
    path = write_dc(tmp_path / "res.pt", (IMAGES, LABELS), (OTHER_IMAGES, LABELS))
    with pytest.raises(UsageError, match=r"holds 2 sets; name one with --index 0 to 1 \(0: a tens"):
        read(path, "dc", space="raw")
    assert same(read(path, "dc", space="raw", index=0))
    assert same(read(path, "dc", space="raw", index=1), OTHER_IMAGES)
    with pytest.raises(UsageError, match=r"--index 2: .*res\.pt holds 2 \(the first is 0\)"):
        read(path, "dc", space="raw", index=2)


@pytest.mark.parametrize("single", [True, False])
def test_the_statistics_of_published_codes_have_names(single, tmp_path):
    mean, std = STATISTICS["dc-cifar10"]
    images = normalised(IMAGES, mean, std)
    path = write_dc(tmp_path / "res.pt", (images if single else images.double(), LABELS))
    made = read(path, "dc", space="normalised", statistics="dc-cifar10")
    assert same(made)
    assert made.preprocessing == Preprocessing("normalise", mean, std)


def test_every_named_statistics_is_a_preprocessing():
    for mean, std in STATISTICS.values():
        assert len(mean) in (1, 3)
        Preprocessing("normalise", mean, std)


# --- MTT, TESLA, FTD and DATM ------------------------------------------------------------------


def test_mtt_images_come_with_the_labels_beside_them(tmp_path):
    path = write_mtt(tmp_path / "mtt", normalised(IMAGES), LABELS)
    write_mtt(tmp_path / "mtt", normalised(OTHER_IMAGES), LABELS.flip(0), name="5000")
    assert same(read(path, "mtt", **MTT, **NORMALISED))
    assert same(read(path.parent, "mtt", **MTT, **NORMALISED))
    later = read(path.with_name("images_5000.pt"), "mtt", **MTT, **NORMALISED)
    assert same(later, OTHER_IMAGES, LABELS.flip(0))
    assert set(later.provenance["imported"]["files"]) == {"images_5000.pt", "labels_5000.pt"}


@pytest.mark.parametrize(("given", "rate"), [("0.02", 0.02), ("track", None)])
def test_the_learning_rate_of_mtt_is_the_one_that_is_named(given, rate, tmp_path):
    path = write_mtt(tmp_path, IMAGES, LABELS)
    made = read(path, "mtt", space="raw", labels="hard", learning_rate=given)
    assert made.learning_rate == rate


def test_zca_images_are_mapped_back_with_the_training_images_and_named_so(tmp_path):
    train = load_data(load_track(str(TRACK), registry()), registry(), tmp_path).train.images
    pixels, labels = digits_like()
    zca = Preprocessing("zca", epsilon=0.1)
    whitened = zca.layer(train)(pixels)
    path = write_mtt(tmp_path, whitened, labels)
    made = read(path, "mtt", train, space="zca", **MTT)
    outside = ((pixels < -0.5 / 255) | (pixels > 1 + 0.5 / 255)).double().mean()
    assert describe(made)["pixels_outside"] == pytest.approx(float(outside), abs=2e-3)
    torch.testing.assert_close(made.images, pixels, rtol=0, atol=1e-5)
    assert made.preprocessing == zca
    seen = made.preprocessing.layer(train)(made.images)
    torch.testing.assert_close(seen, whitened, rtol=0, atol=1e-5)


def test_zca_images_need_training_images_of_their_shape(tmp_path):
    path = write_mtt(tmp_path, IMAGES, LABELS)
    with pytest.raises(UsageError, match="--space zca: pixels are found with the training images"):
        read(path, "mtt", space="zca", **MTT)
    with pytest.raises(UsageError, match=r"have shape \(3, 8, 8\), the track's .* \(1, 8, 8\)"):
        read(path, "mtt", torch.rand(9, 1, 8, 8), space="zca", **MTT)


@pytest.mark.parametrize("rate", [torch.tensor(0.25), torch.tensor([0.25]).double(), 0.25])
def test_datm_logits_become_distributions_and_the_rate_is_read_beside_them(rate, tmp_path):
    logits = torch.randn(20, 10, generator=torch.Generator().manual_seed(3)) * 4
    path = write_mtt(tmp_path, normalised(IMAGES), logits.requires_grad_(), rate=rate)
    made = read(path, "datm", **NORMALISED)
    for row, given in zip(made.labels.tolist(), logits.tolist(), strict=True):
        exponentials = [math.exp(value) for value in given]
        assert row == pytest.approx([e / sum(exponentials) for e in exponentials], abs=1e-6)
    assert made.labels.dtype == torch.float32
    assert made.learning_rate == 0.25
    assert set(made.provenance["imported"]["files"]) == {
        "images_best.pt",
        "labels_best.pt",
        "lr_best.pt",
    }


def test_a_named_rate_goes_before_the_file_of_datm(tmp_path):
    path = write_mtt(tmp_path, IMAGES, torch.zeros(20, 10))
    assert read(path, "datm", space="raw", learning_rate="track").learning_rate is None
    assert read(path, "datm", space="raw", learning_rate="0.5").learning_rate == 0.5
    with pytest.raises(UsageError, match=r"lr_best\.pt does not exist; format datm has .* there"):
        read(path, "datm", space="raw")


def test_soft_labels_are_taken_as_they_are(tmp_path):
    soft = torch.full((20, 10), 0.1)
    path = write_mtt(tmp_path, IMAGES, soft)
    made = read(path, "mtt", space="raw", labels="soft", learning_rate="track")
    assert torch.equal(made.labels, soft)


def test_beard_keeps_mtt_in_its_own_layout_and_trains_with_the_rate_of_the_track(tmp_path):
    write_mtt(tmp_path, normalised(IMAGES), LABELS)
    made = read(tmp_path, "beard", **NORMALISED)
    assert same(made)
    assert made.learning_rate is None
    with pytest.raises(UsageError, match=r"--index 0: .* is one set"):
        read(tmp_path, "beard", index=0, **NORMALISED)


# --- IDC ---------------------------------------------------------------------------------------


def enlarged(part, height, width):
    """Bilinear sampling, one pixel at a time; the corners of the grids are not aligned."""

    def place(i, size, wanted):
        at = max((i + 0.5) * size / wanted - 0.5, 0.0)
        low = min(int(at), size - 1)
        return low, min(low + 1, size - 1), at - low

    out = torch.zeros(len(part), height, width)
    for y in range(height):
        top, bottom, v = place(y, part.shape[1], height)
        for x in range(width):
            left, right, h = place(x, part.shape[2], width)
            upper = (1 - h) * part[:, top, left] + h * part[:, top, right]
            lower = (1 - h) * part[:, bottom, left] + h * part[:, bottom, right]
            out[:, y, x] = (1 - v) * upper + v * lower
    return out


@pytest.mark.parametrize(("size", "factor"), [(8, 2), (7, 2), (8, 3), (6, 3), (5, 5)])
def test_idc_decode_equals_its_naive_loop(size, factor):
    images, labels = digits_like(per_class=2, size=size, classes=2)
    side = -(-size // factor)
    wanted, kinds = [], []
    for k in range(2):
        for i in range(factor):
            for j in range(factor):
                for image in images[labels == k]:
                    whole = torch.full((1, side * factor, side * factor), 0.5)
                    whole[:, :size, :size] = image
                    part = whole[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
                    wanted.append(enlarged(part, size, size))
                    kinds.append(k)
    decoded, found = decode(images, labels, factor)
    torch.testing.assert_close(decoded, torch.stack(wanted), rtol=0, atol=1e-6)
    assert found.tolist() == kinds


def test_idc_images_are_pixels_and_stay_whole_unless_a_factor_is_named(tmp_path):
    torch.save([IMAGES, LABELS], tmp_path / "data.pt")
    made = read(tmp_path / "data.pt", "idc")
    assert torch.equal(made.images, IMAGES)
    apart = read(tmp_path / "data.pt", "idc", factor=2)
    assert torch.equal(apart.images, decode(IMAGES, LABELS, 2)[0])
    assert describe(apart)["images_per_class"] == [8] * 10
    assert apart.provenance["imported"]["options"]["factor"] == 2


def test_an_image_cannot_be_cut_into_more_parts_than_it_has_pixels(tmp_path):
    torch.save(list(digits_like(size=2)), tmp_path / "data.pt")
    with pytest.raises(UsageError, match="--factor 3: the images are 2x2 pixels"):
        read(tmp_path / "data.pt", "idc", factor=3)


# --- folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["{}", "{:05d}", "new{:03d}"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folders_that_number_the_classes_are_read_in_that_order(pattern, channels, tmp_path):
    images, labels = digits_like(channels=channels, classes=11)
    root = write_folder(tmp_path / "set", images, labels, [pattern.format(k) for k in range(11)])
    (root / ".DS_Store").write_bytes(b"x")
    (root / pattern.format(3) / ".DS_Store").write_bytes(b"x")
    made = read(root, "folder")
    torch.testing.assert_close(made.images, images.clamp(0, 1), rtol=0, atol=0.5 / 255 + 1e-6)
    assert torch.equal(made.labels, labels)
    assert list(made.provenance["imported"]["files"]) == ["set/"]


def test_jpeg_folders_are_read(tmp_path):
    flat = torch.linspace(0.1, 0.9, 10).view(10, 1, 1, 1).expand(10, 3, 8, 8)
    root = write_folder(tmp_path, flat, torch.arange(10), list("0123456789"), suffix="jpg")
    torch.testing.assert_close(read(root, "folder").images, flat, rtol=0, atol=0.02)


def test_other_names_have_the_order_that_is_named(tmp_path):
    names = ["n02", "n01", "cat"]
    images, labels = digits_like(per_class=1, classes=3)
    root = write_folder(tmp_path / "set", images, labels, names)
    with pytest.raises(
        UsageError, match=r"\(cat, n01, n02\) do not number the classes from 0 to 2"
    ):
        read(root, "folder")
    in_order = read(root, "folder", classes="sorted").images
    order = tmp_path / "order.txt"
    order.write_text("n02\n\nn01\ncat\n")
    named = read(root, "folder", classes=str(order))
    torch.testing.assert_close(named.images, in_order.flip(0), rtol=0, atol=0)
    assert set(named.provenance["imported"]["files"]) == {"set/", "order.txt"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\n", "must name each of the 3 folders once, a line each; 'c' is in one of both"),
        ("a\nb\nc\nd\n", "'d' is in one of both"),
        ("a\nb\nc\nc\n", "a name is there twice"),
        ("\xff", "not a text"),
    ],
)
def test_an_order_names_every_folder_once(text, line, tmp_path):
    images, labels = digits_like(per_class=1, classes=3)
    root = write_folder(tmp_path / "set", images, labels, list("abc"))
    (tmp_path / "order.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=line):
        read(root, "folder", classes=str(tmp_path / "order.txt"))


# --- what all of them have in common -----------------------------------------------------------


def test_every_format_has_a_reader():
    assert set(READERS) == set(FORMATS)


def test_where_a_set_comes_from_is_in_it(tmp_path):
    path = write_dc(tmp_path / "res.pt", (normalised(IMAGES), LABELS))
    found = read(path, "dc", augmentation="color_crop", **NORMALISED)
    again = read(path, "dc", augmentation="color_crop", **NORMALISED)
    origin = found.provenance["imported"]
    assert origin["format"] == "dc"
    assert list(origin["files"]) == ["res.pt"]
    assert origin["options"] == {
        "space": "normalised",
        "labels": "hard",
        "learning_rate": "track",
        "mean": list(MEAN),
        "std": list(STD),
        "augmentation": "color_crop",
    }
    assert found.augmentation == "color_crop"
    assert found.sha256() == again.sha256()
    assert str(tmp_path) not in str(found.provenance)


def test_the_description_shows_images_that_were_read_as_of_another_space(tmp_path):
    path = write_dc(tmp_path / "res.pt", (normalised(IMAGES), LABELS))
    right, wrong = (
        describe(read(path, "dc", **options)) for options in (NORMALISED, {"space": "raw"})
    )
    assert right["pixels_outside"] < 0.4 < wrong["pixels_outside"]
    assert wrong["pixel_min"] < -1


def test_real_pixels_that_were_whitened_are_not_outside_for_their_rounding(tmp_path):
    train = load_data(load_track(str(TRACK), registry()), registry(), tmp_path).train
    real = train.images[:20]
    path = write_mtt(tmp_path, Preprocessing("zca").layer(train.images)(real), train.labels[:20])
    made = read(path, "mtt", train.images, space="zca", **MTT)
    assert float(made.images.min()) < 0
    assert describe(made)["pixels_outside"] == 0


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("npz", {}, "unknown format 'npz'"),
        ("dc", {}, r"format dc does not say the space of its images \(--space: raw, norm"),
        (
            "mtt",
            {"space": "normalised"},
            r"does not say the kind of its labels \(--labels: .*; nor the learning rate .*; nor "
            r"what they are normalised with \(--mean and --std, or --statistics: dc-mnist",
        ),
        (
            "tensors",
            {},
            r"format tensors .* the space .*; nor the kind of its labels \(--labels: h",
        ),
        ("mtt", {"space": "raw"}, "format mtt does not say the kind of its labels"),
        (
            "mtt",
            {"space": "raw", "labels": "hard"},
            "does not say the learning rate that came",
        ),
        ("dc", {"space": "zac"}, "unknown space 'zac'; did you mean 'zca'?"),
        ("dc", {"space": "normalised"}, "does not say what they are normalised with"),
        ("dc", {"space": "normalised", "mean": "1"}, "normalised: name with what"),
        ("dc", {**NORMALISED, "statistics": "imagenet"}, "give --statistics, or --mean and --std"),
        ("dc", {"space": "normalised", "statistics": "cifar"}, "unknown statistics 'cifar'"),
        ("dc", {"space": "raw", "statistics": "imagenet"}, "go with --space normalised, not with"),
        ("dc", {"space": "normalised", "mean": "a,b", "std": "1"}, "--mean takes numbers joined"),
        ("dc", {"space": "normalised", "mean": "nan", "std": "1"}, "--mean takes numbers joined"),
        ("dc", {"space": "normalised", "mean": "1", "std": ""}, "--std takes numbers joined"),
        ("dc", {"space": "normalised", "mean": "1", "std": "1,2"}, "--mean has 1 numbers, --std 2"),
        ("dc", {"space": "normalised", "mean": "1", "std": "0"}, "--std must be positive, not 0"),
        ("dc", {"space": "raw", "labels": "soft"}, "--labels soft: in format dc it is always hard"),
        ("idc", {"space": "zca"}, "--space zca: in format idc it is always raw"),
        ("idc", {"index": 1}, "--index means nothing for format idc"),
        ("datm", {"space": "raw", "index": 2}, "--index means nothing for format datm"),
        ("mtt", {"classes": "sorted"}, "--classes means nothing for format mtt"),
        ("idc", {"learning_rate": "fast"}, "--learning-rate takes a positive number or `track`"),
        ("idc", {"learning_rate": "-1"}, "--learning-rate takes a positive number"),
        ("idc", {"learning_rate": "inf"}, "--learning-rate takes a positive number"),
    ],
)
def test_what_is_not_named_or_means_nothing_is_a_wrong_call(name, options, line):
    with pytest.raises(UsageError, match=line):
        choose(name, **options)


def test_an_unknown_augmentation_is_a_wrong_call(tmp_path):
    path = write_dc(tmp_path / "res.pt", (IMAGES, LABELS))
    with pytest.raises(UsageError, match="unknown augmentation 'colour'; did you mean 'color'"):
        read(path, "dc", space="raw", augmentation="colour_crop")


def test_a_compressed_archive_is_read_like_another(tmp_path):
    content = rezipped(torch_bytes([IMAGES, LABELS]), lambda _, data: data, compression=8)
    (tmp_path / "data.pt").write_bytes(content)
    assert same(read(tmp_path / "data.pt", "idc"))


@pytest.mark.parametrize("name", ["dc", "beard"])
def test_a_factor_makes_mosaics_of_dc_files_and_keeps_the_stored_images(name, tmp_path):
    path = write_dc(tmp_path / "res.pt", (normalised(IMAGES), LABELS))
    made = read(path, name, factor=2, **NORMALISED)
    assert same(made)
    assert (made.mosaic, made.training_images) == (2, 4 * len(IMAGES))
    assert describe(made)["mosaic"] == 2
    assert made.provenance["imported"]["options"]["factor"] == 2
    assert read(path, name, **NORMALISED).mosaic == 1
    with pytest.raises(UsageError, match="needs images whose sides 5 divides"):
        read(path, name, factor=5, **NORMALISED)
