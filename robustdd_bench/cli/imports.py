"""`robustdd convert` and `export`, and the options by which foreign formats are read."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from robustdd_bench.cli.shared.arguments import OneOf, RegisteredName, data_root_option
from robustdd_bench.cli.shared.output import (
    announce,
    json_option,
    one_line,
    print_json,
    print_table,
)
from robustdd_bench.cli.shared.session import Session, pass_session
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
    data = _data(track, registry, options) if choices.space == "zca" else None
    made = read_foreign(path, choices, data)
    facts = describe(made)
    if choices.factor > choices.mosaic and set(facts["images_per_class"]) != {track.data.ipc}:
        needed = max(facts["images_per_class"])
        raise UsageError(
            f"--factor {choices.factor}: taken apart, the set has {needed} images of a class, and "
            f"track {track.id} is for {track.data.ipc}. Students see every part as an image, so it "
            f"needs a track of {needed} images per class; or leave --factor out"
        )
    print(f"read {_sentence(facts)}", file=sys.stderr, flush=True)
    _warn_of_mosaics(facts)
    return made


def _warn_of_mosaics(facts: dict[str, Any]) -> None:
    """Say that images look like mosaics that were not told to be."""
    if facts["looks_like_mosaics"]:
        print(
            "warning: the images look like mosaics of 2x2 small ones, as IDM, BACON, ROME and NCFM "
            "store them; --factor 2 says so, and without it they are judged as whole images",
            file=sys.stderr,
            flush=True,
        )


def _data(track: Track, registry: Registry, options: dict[str, Any]) -> ImageData:
    from robustdd_bench.protocol.loading import load_data

    return load_data(track, registry, options["data_root"], download=options["download"])


def _sentence(facts: dict[str, Any]) -> str:
    least, most = min(facts["images_per_class"]), max(facts["images_per_class"])
    per_class = str(most) if least == most else f"{least} to {most}"
    return (
        f"{facts['images']} images, {per_class} of each of {facts['num_classes']} classes, pixels "
        f"from {facts['pixel_min']:.3g} to {facts['pixel_max']:.3g}, "
        f"{100 * facts['pixels_outside']:.1f} % of them outside [0,1]"
    )


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("target", type=click.Path(path_type=Path), metavar="OUT")
@click.option(
    "--format",
    "file_format",
    type=OneOf("format", tuple(FORMATS)),
    required=True,
    help=f"Format of FILE: {', '.join(FORMATS)}.",
)
@import_options
@click.option(
    "--track",
    type=RegisteredName("tracks"),
    help="Hold the set against its images and classes; --space zca needs its training split.",
)
@data_root_option
@click.option("--download", is_flag=True, help="Download the track's dataset if it is missing.")
@click.option(
    "--preview",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Write a picture of the set too.",
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
@json_option
@pass_session
def convert(
    session: Session,
    /,
    source: Path,
    target: Path,
    file_format: str,
    track: str | None,
    preview: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a distilled set of another format as one of ours.

    OUT is a .safetensors file for `robustdd evaluate`. What a format leaves open has to be named;
    docs/importing.md says what that is, and what no file tells.
    """
    choices = take_choices(file_format, options)
    assert choices is not None
    if choices.space == "zca" and track is None:
        raise UsageError("--space zca: pixels are found with the training split; name its --track")
    for path in (target, *(() if preview is None else (preview,))):
        _check_target(path, source, force)
    if preview is not None and _same(preview, target):
        raise UsageError(f"OUT and --preview are both {target}")

    from robustdd_bench.drawing.figures import save_distilled
    from robustdd_bench.files import file_sha256
    from robustdd_bench.imports.convert import describe
    from robustdd_bench.imports.external_set import check_fits
    from robustdd_bench.protocol.tracks import load_track

    data = None
    if track is not None:
        data = _data(load_track(track, session.registry), session.registry, options)
    made = read_foreign(source, choices, data)
    if data is not None:
        check_fits(made, tuple(data.train.images.shape[1:]), data.num_classes, None)
    facts = describe(made)
    made.save(target)
    if preview is not None:
        save_distilled(preview, made, facts["num_classes"])
    written = {"file": str(target), "sha256": file_sha256(target)}
    _warn_of_mosaics(facts)
    if as_json:
        print_json(written | {"preview": None if preview is None else str(preview)} | facts)
        return
    layer = facts["preprocessing"]
    rows = [
        ("file", target),
        ("sha256", written["sha256"]),
        ("holds", _sentence(facts)),
        ("image", "x".join(map(str, facts["shape"]))),
        ("labels", facts["labels"]),
        ("learning rate", "the track's" if made.learning_rate is None else made.learning_rate),
        ("augmentation", "the track's" if made.augmentation is None else made.augmentation),
        ("preprocessing", "the track's" if layer is None else _layer_text(layer)),
        *((("preview", preview),) if preview is not None else ()),
    ]
    print_table(("", "set"), rows)


def _layer_text(layer: dict[str, Any]) -> str:
    if layer["kind"] == "zca":
        return f"zca, epsilon {layer['epsilon']:g}"
    mean, std = (", ".join(f"{value:g}" for value in layer[key]) for key in ("mean", "std"))
    return f"normalise, mean {mean}, std {std}"


def _check_target(path: Path, source: Path, force: bool) -> None:
    """Refuse to write over what is there, and over the source in any case."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file")
    if _same(path, source):
        raise UsageError(f"{path} is the file that is read; write to another one")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} is there already; choose another name, or add --force")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


# Those of robustdd_bench.exports.layouts, which imports torch.
LAYOUTS = ("dc", "mtt", "tensors", "npz", "imagefolder")


@click.command("export")
@click.argument("source", type=click.Path(path_type=Path), metavar="RUN|SET")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="A new folder.",
)
@click.option(
    "--as",
    "layout",
    type=OneOf("layout", LAYOUTS),
    default="tensors",
    show_default=True,
    metavar=f"[{'|'.join(LAYOUTS)}]",
    help="The layout of its files.",
)
@click.option(
    "--space",
    type=OneOf("space", ("raw", "normalised")),
    metavar="[raw|normalised]",
    help="That of the images; by default normalised for dc and mtt, and raw pixels elsewhere.",
)
@click.option(
    "--statistics",
    metavar="NAME",
    help="What they are normalised with; by default what the DC and MTT codes take for the "
    "dataset. docs/importing.md lists the names.",
)
@click.option("--force", is_flag=True, help="Write into a folder that has files.")
@json_option
@pass_session
def export_command(
    session: Session,
    source: Path,
    target: Path,
    layout: str,
    space: str | None,
    statistics: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a distilled set for other codes, with a card, its record and what to cite.

    RUN is the folder of a run, published or not; SET a file such as distilled.safetensors. What a
    layout does not hold is printed, and named in the card. `robustdd evaluate DIR --format` reads
    all of them again.
    """
    announce(f"{source} to {target}")
    from robustdd_bench.exports.write import export
    from robustdd_bench.papers.pictures import read_set

    distilled, record = read_set(source)
    done = export(
        distilled,
        record,
        source,
        target,
        session.registry,
        layout=layout,
        space=space,
        statistics=statistics,
        force=force,
    )
    if as_json:
        print_json({"folder": str(target), "files": done.files, "not_held": done.losses})
        return
    print(target)
    for loss in done.losses:
        print(one_line(f"note: {loss}"), file=sys.stderr)
