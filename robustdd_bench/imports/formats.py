"""The formats in which others publish distilled sets, and what each of them leaves open.

The files say neither in which space their images are nor how students were trained. What the code
that writes a format settles is taken from there; the rest has to be named by whoever imports a set.
Nothing is guessed, and what a format has no use for is refused.

No torch here: the command line reads these tables for `--help`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustdd_bench.errors import UsageError, unknown_name

SPACES = ("raw", "normalised", "zca")
LABELS = ("hard", "soft", "logits")
TRACK = "track"
"""In place of a learning rate: the set brings none, its students take the track's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A format; None stands for what the call has to name."""

    summary: str
    space: str | None
    """Where the images are: one of `SPACES`."""
    labels: str | None
    """One of `LABELS`."""
    rate: str | None
    """Where the learning rate of the students comes from, unless the call gives one: `TRACK`, or
    "file", which is a file beside the images."""
    takes: frozenset[str] = frozenset()
    """Options that are of use here and not everywhere: index, factor, classes."""


FORMATS: Mapping[str, Format] = {
    "dc": Format(
        summary="res_*.pt of DC, DSA and DM",
        space=None,
        labels="hard",
        rate=TRACK,
        takes=frozenset({"index", "factor"}),
    ),
    "beard": Format(
        summary="BEARD's pool: DC's layout, of MTT images_best.pt and labels_best.pt",
        space=None,
        labels="hard",
        rate=TRACK,
        takes=frozenset({"index", "factor"}),
    ),
    "mtt": Format(
        summary="images_*.pt and labels_*.pt of MTT, TESLA and FTD",
        space=None,
        labels=None,
        rate=None,
        takes=frozenset({"factor"}),
    ),
    "datm": Format(
        summary="images_*.pt, labels_*.pt and lr_*.pt of DATM",
        space=None,
        labels="logits",
        rate="file",
        takes=frozenset({"factor"}),
    ),
    "idc": Format(
        summary="data.pt of IDC",
        space="raw",
        labels="hard",
        rate=TRACK,
        takes=frozenset({"factor"}),
    ),
    "folder": Format(
        summary="a folder of PNG or JPEG a class, as of SRe2L and RDED",
        space="raw",
        labels="hard",
        rate=TRACK,
        takes=frozenset({"classes", "factor"}),
    ),
    "tensors": Format(
        summary="images and labels in a .pt, .npz or .safetensors file, or a file of each",
        space=None,
        labels=None,
        rate=TRACK,
        takes=frozenset({"factor"}),
    ),
}

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DC_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "dc-mnist": ((0.1307,), (0.3081,)),
    "dc-fashion-mnist": ((0.2861,), (0.3530,)),
    "dc-svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "dc-cifar10": _DC_CIFAR,
    # The DC and MTT codes normalise CIFAR-100 with the figures of CIFAR-10.
    "dc-cifar100": _DC_CIFAR,
    "beard-cifar100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": _IMAGENET,
}
"""Mean and std per channel that published codes normalise with: "dc-" those of DC, DSA, DM, MTT
and their successors, "imagenet" what they and BEARD take for Tiny ImageNet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """Everything that decides how a file is read, settled by the format or named in the call."""

    format: str
    space: str
    labels: str
    rate: str
    """`TRACK`, "file" or "call"."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    statistics: str | None = None
    """The name under which mean and std were given."""
    learning_rate: float | None = None
    """Where `rate` is "call"."""
    augmentation: str | None = None
    index: int | None = None
    factor: int = 1
    """Parts a side that each image is cut into: by students (`mosaic`), or here, of IDC."""
    classes: str | None = None

    @property
    def mosaic(self) -> int:
        """Tiles a side of the set's images; those of IDC are taken apart as they are read."""
        return 1 if self.format == "idc" else self.factor

    def described(self) -> dict[str, Any]:
        """What a set's provenance says of them, as JSON values."""
        rate = self.learning_rate if self.rate == "call" else self.rate
        said: dict[str, Any] = {"space": self.space, "labels": self.labels, "learning_rate": rate}
        if self.space == "normalised":
            said |= {"mean": list(self.mean), "std": list(self.std)}
        for key in ("statistics", "augmentation", "index"):
            if getattr(self, key) is not None:
                said[key] = getattr(self, key)
        if self.factor != 1:
            said["factor"] = self.factor
        if self.classes is not None:
            said["classes"] = "sorted" if self.classes == "sorted" else "file"
        return said


def choose(
    name: str,
    *,
    space: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    statistics: str | None = None,
    labels: str | None = None,
    learning_rate: str | None = None,
    augmentation: str | None = None,
    index: int | None = None,
    factor: int | None = None,
    classes: str | None = None,
) -> Choices:
    """Settle how a file of a format is read.

    Args:
        name: one of `FORMATS`.
        space: one of `SPACES`.
        mean: numbers joined by commas, one a channel.
        std: the same.
        statistics: one of `STATISTICS`, in place of mean and std.
        labels: one of `LABELS`.
        learning_rate: a number, or `TRACK`.
        augmentation: what students are augmented with; None: what the track says.
        index: which of the sets in the file, from 0.
        factor: parts a side of each image, of IDC or of mosaics such as IDM's.
        classes: "sorted", or a file of folder names in the order of the classes.

    Raises:
        UsageError: something the format leaves open is not named, or something it has no use for
            is; or a value is out of range.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    format_ = FORMATS[name]
    for option, value in (("index", index), ("factor", factor), ("classes", classes)):
        if value is not None and option not in format_.takes:
            raise UsageError(f"--{option} means nothing for format {name}; leave it out")
    where, kind = (
        _settled(name, option, settled, given, known)
        for option, settled, given, known in (
            ("--space", format_.space, space, SPACES),
            ("--labels", format_.labels, labels, LABELS),
        )
    )
    unnamed = [
        f"{what} ({option}: {', '.join(known)})"
        for value, what, option, known in (
            (where, "the space of its images", "--space", SPACES),
            (kind, "the kind of its labels", "--labels", LABELS),
        )
        if value is None
    ]
    if format_.rate is None and learning_rate is None:
        unnamed.append(
            "the learning rate that came with the images (--learning-rate: a number, or `track` "
            "for the track's own)"
        )
    if where == "normalised" and mean is None and std is None and statistics is None:
        unnamed.append(
            f"what they are normalised with (--mean and --std, or --statistics: "
            f"{', '.join(STATISTICS)})"
        )
    if unnamed or where is None or kind is None:
        raise UsageError(f"format {name} does not say {'; nor '.join(unnamed)}")
    means, stds = _statistics(where, mean, std, statistics)
    rate, number = _rate(format_, learning_rate)
    return Choices(
        format=name,
        space=where,
        labels=kind,
        rate=rate,
        mean=means,
        std=stds,
        statistics=statistics,
        learning_rate=number,
        augmentation=augmentation,
        index=index,
        factor=factor or 1,
        classes=classes,
    )


def _settled(
    name: str, option: str, settled: str | None, given: str | None, known: tuple[str, ...]
) -> str | None:
    """What the format settles or the call names; None if neither does."""
    if given is not None and given not in known:
        raise unknown_name(option.removeprefix("--"), given, known)
    if settled is not None and given not in (None, settled):
        raise UsageError(f"{option} {given}: in format {name} it is always {settled}")
    return settled or given


def _statistics(
    space: str, mean: str | None, std: str | None, name: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of normalised images; nothing for the other spaces."""
    if space != "normalised":
        if mean is not None or std is not None or name is not None:
            raise UsageError(
                f"--mean, --std and --statistics go with --space normalised, not with {space}"
            )
        return (), ()
    if name is not None:
        if mean is not None or std is not None:
            raise UsageError("give --statistics, or --mean and --std, not both")
        if name not in STATISTICS:
            raise unknown_name("statistics", name, STATISTICS)
        return STATISTICS[name]
    if mean is None or std is None:
        raise UsageError(
            "the images are normalised: name with what, by --mean and --std or by --statistics "
            f"({', '.join(STATISTICS)})"
        )
    means, stds = _numbers("--mean", mean), _numbers("--std", std)
    if len(means) != len(stds):
        raise UsageError(f"--mean has {len(means)} numbers, --std {len(stds)}")
    if min(stds) <= 0:
        raise UsageError(f"--std must be positive, not {min(stds):g}")
    return means, stds


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) for value in values):
        raise UsageError(f"{option} takes numbers joined by commas, one a channel, not {text!r}")
    return values


def _rate(format_: Format, given: str | None) -> tuple[str, float | None]:
    if given is None:
        return str(format_.rate), None
    if given == TRACK:
        return TRACK, None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"--learning-rate takes a positive number or `track`, not {given!r}")
    return "call", value
