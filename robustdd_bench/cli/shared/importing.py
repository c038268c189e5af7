"""Options by which sets of foreign formats are read, and what reads them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustdd_bench.cli.shared.arguments import OneOf
from robustdd_bench.errors import UsageError
from robustdd_bench.imports.formats import FORMATS, LABELS, SPACES, STATISTICS, Choices, choose

if TYPE_CHECKING:
    from robustdd_bench.distillers import DistilledSet
    from robustdd_bench.plugins import Registry
    from robustdd_bench.protocol.datasets import ImageData
    from robustdd_bench.protocol.tracks import Track

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--space",
        type=OneOf("space", SPACES),
        help="Foreign format: where its images are, raw (pixels in [0,1]), normalised or zca.",
    ),
    click.option(
        "--statistics",
        type=OneOf("statistics", tuple(STATISTICS)),
        help="Of normalised images: mean and std by name, those of a published code.",
    ),
    click.option("--mean", metavar="M,...", help="Of normalised images: a number a channel."),
    click.option("--std", metavar="S,...", help="Of normalised images: a number a channel."),
    click.option(
        "--labels",
        type=OneOf("labels", LABELS),
        help="Foreign format: what its labels are, hard, soft (distributions) or logits.",
    ),
    click.option(
        "--learning-rate",
        metavar="RATE",
        help="Foreign format: what students are trained with, a number, or `track`.",
    ),
    click.option(
        "--augmentation",
        metavar="STRATEGY",
        help="Foreign format: what students are augmented with. Without it: the track's.",
    ),
    click.option(
        "--index",
        type=click.IntRange(min=0),
        help="dc, beard: which of the sets in the file, from 0.",
    ),
    click.option(
        "--factor",
        type=click.IntRange(1, 8),
        help="idc: take each image apart into FACTOR x FACTOR images. dc, beard: each is a mosaic "
        "of so many (IDM, BACON, ROME: 2). Without it: whole images.",
    ),
    click.option(
        "--classes",
        metavar="FILE|sorted",
        help="folder: a file of folder names in the order of the classes, or `sorted`.",
    ),
)


def import_options(function: Function) -> Function:
    """Add the options that say how a foreign format is read; `take_choices` receives them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def take_choices(file_format: str, options: dict[str, Any]) -> Choices | None:
    """Take the import options out of a call's options, and settle how the file is read.

    Returns:
        None for our own format.

    Raises:
        UsageError: something is missing, out of range, or of no use.
    """
    values = {
        name: options.pop(name) for name in inspect.signature(choose).parameters if name != "name"
    }
    if file_format in FORMATS:
        return choose(file_format, **values)
    for name, value in values.items():
        if value is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} is for foreign formats; name it with --format "
                f"({', '.join(FORMATS)})"
            )
    return None


def read_foreign(path: Path, choices: Choices, data: ImageData | None) -> DistilledSet:
    """Read a set, with one thread: the bits of the result then depend on no machine's cores."""
    from robustdd_bench.imports.convert import import_set
    from robustdd_bench.runs.work import threads

    if choices.space != "zca" or data is None:
        with threads(1):
            return import_set(path, choices)
    print(f"fitting ZCA on {len(data.train)} training images", file=sys.stderr, flush=True)
    with threads(1):
        return import_set(path, choices, data.train.images)


def import_for_track(
    path: Path, choices: Choices, registry: Registry, options: dict[str, Any]
) -> DistilledSet:
    """Read a set that is to be evaluated, and say on stderr what it is.

    Raises:
        UsageError: it cannot be read, or taken apart it is not of the track's size.
    """
    from robustdd_bench.imports.convert import describe
    from robustdd_bench.protocol.tracks import load_track

    track = load_track(options["track"], registry)
    data = read_data(track, registry, options) if choices.space == "zca" else None
    made = read_foreign(path, choices, data)
    facts = describe(made)
    if choices.factor > choices.mosaic and set(facts["images_per_class"]) != {track.data.ipc}:
        needed = max(facts["images_per_class"])
        raise UsageError(
            f"--factor {choices.factor}: taken apart, the set has {needed} images of a class, and "
            f"track {track.id} is for {track.data.ipc}. Students see every part as an image, so it "
            f"needs a track of {needed} images per class; or leave --factor out"
        )
    print(f"read {sentence(facts)}", file=sys.stderr, flush=True)
    warn_of_mosaics(facts)
    return made


def warn_of_mosaics(facts: dict[str, Any]) -> None:
    """Say that images look like mosaics that were not told to be."""
    if facts["looks_like_mosaics"]:
        print(
            "warning: the images look like mosaics of 2x2 small ones, as IDM, BACON, ROME and NCFM "
            "store them; --factor 2 says so, and without it they are judged as whole images",
            file=sys.stderr,
            flush=True,
        )


def read_data(track: Track, registry: Registry, options: dict[str, Any]) -> ImageData:
    """Load the data of a track, as the options `data_root` and `download` say."""
    from robustdd_bench.protocol.loading import load_data

    return load_data(track, registry, options["data_root"], download=options["download"])


def sentence(facts: dict[str, Any]) -> str:
    """What a set holds, in words; the facts are those of `imports.convert.describe`."""
    least, most = min(facts["images_per_class"]), max(facts["images_per_class"])
    per_class = str(most) if least == most else f"{least} to {most}"
    return (
        f"{facts['images']} images, {per_class} of each of {facts['num_classes']} classes, pixels "
        f"from {facts['pixel_min']:.3g} to {facts['pixel_max']:.3g}, "
        f"{100 * facts['pixels_outside']:.1f} % of them outside [0,1]"
    )
