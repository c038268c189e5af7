"""`robustdd convert`, `export` and `push`: distilled sets as files, of other codes and for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from robustdd_bench.cli.shared.arguments import OneOf, RegisteredName, data_root_option
from robustdd_bench.cli.shared.importing import (
    import_options,
    read_data,
    read_foreign,
    sentence,
    take_choices,
    warn_of_mosaics,
)
from robustdd_bench.cli.shared.output import (
    announce,
    json_option,
    one_line,
    print_json,
    print_table,
)
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import UsageError
from robustdd_bench.imports.formats import FORMATS
from robustdd_bench.text.terminal import size_text


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
        data = read_data(load_track(track, session.registry), session.registry, options)
    made = read_foreign(source, choices, data)
    if data is not None:
        check_fits(made, tuple(data.train.images.shape[1:]), data.num_classes, None)
    facts = describe(made)
    made.save(target)
    if preview is not None:
        save_distilled(preview, made, facts["num_classes"])
    written = {"file": str(target), "sha256": file_sha256(target)}
    warn_of_mosaics(facts)
    if as_json:
        print_json(written | {"preview": None if preview is None else str(preview)} | facts)
        return
    layer = facts["preprocessing"]
    rows = [
        ("file", target),
        ("sha256", written["sha256"]),
        ("holds", sentence(facts)),
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
LAYOUTS = ("dc", "mtt", "tensors", "npz", "imagefolder", "hub")


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
@click.option(
    "--licence", metavar="SPDX", help='Licence of the set, e.g. "CC-BY-4.0", for its card.'
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
    licence: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a distilled set for other codes, with a card, its record and what to cite.

    RUN is the folder of a run, published or not; SET a file such as distilled.safetensors. What a
    layout does not hold is printed, and named in the card. `robustdd evaluate DIR --format` reads
    all of them again; of hub, `robustdd evaluate DIR/distilled.safetensors` does. `robustdd push`
    uploads a folder of layout hub.
    """
    announce(f"{source} to {target}")
    from robustdd_bench.exports.write import export
    from robustdd_bench.papers.pictures import read_set

    if licence is not None:
        from robustdd_bench.board.admission.submission import make_submission

        make_submission(licence=licence)
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
        licence=licence,
        force=force,
    )
    if as_json:
        print_json({"folder": str(target), "files": done.files, "not_held": done.losses})
        return
    print(target)
    for loss in done.losses:
        print(one_line(f"note: {loss}"), file=sys.stderr)


@click.command("push")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("repository", metavar="ORG/NAME")
@click.option("--public", is_flag=True, help="A new repository is seen by all, not by you alone.")
@click.option("--dry-run", is_flag=True, help="Check, print what would be uploaded, do nothing.")
@json_option
@pass_session
def push_command(
    session: Session, folder: Path, repository: str, public: bool, dry_run: bool, as_json: bool
) -> None:
    """Upload an exported set to the Hugging Face hub, as a dataset.

    DIR is what `robustdd export RUN --to DIR --as hub` wrote. A new repository is private without
    --public; one that is there stays what it is, and is refused if it holds another run. A set that
    holds images of a dataset whose terms forbid to pass them on is refused.

    The login is the client's own: `hf auth login`. Needs pip install 'robustdd-bench[hub]'.
    """
    announce(f"{folder} to {repository}")
    from robustdd_bench.hub.push import plan_upload, push

    upload = plan_upload(folder, repository, session.registry)
    for note in upload.notes:
        print(one_line(f"note: {note}"), file=sys.stderr, flush=True)
    facts = {"repository": repository, "run_id": upload.record.run_id, "files": upload.sizes}
    if dry_run:
        if as_json:
            print_json(facts | {"private": not public, "notes": upload.notes})
            return
        seen = "public" if public else "private"
        title = f"would be uploaded to {repository}, {seen} if it is new"
        print_table(
            ("file", "size"),
            [(name, size_text(size)) for name, size in upload.sizes.items()],
            title=title,
            right=("size",),
        )
        return
    done = push(upload, private=not public)
    if as_json:
        commit = done.address.revision
        print_json(facts | {"commit": commit, "link": done.link, "new": done.new})
        return
    print(done.link)
    for line in (
        f"robustdd evaluate {done.address} --track {upload.record.track.name}",
        f"robustdd publish RUN --link {done.link}",
    ):
        print(f"next: {line}", file=sys.stderr)
