"""A distilled set: what a method gives back and a student is trained on.

Shapes: n distilled images, C channels, H height, W width, K classes. Plugins import it from
`robustdd_bench.distillers`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.filenames import TEACHER_PREFIX
from robustdd_bench.identity import identity
from robustdd_bench.protocol.hashing import hash_tensor
from robustdd_bench.protocol.mosaics import check_mosaic, decode_mosaics, repeat_labels
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.teachers import Teacher

_FORMAT = "robustdd-set-1"
_FORMAT_OF_MOSAICS = "robustdd-set-2"
"""Versions before 0.2 know no mosaics: they refuse these, where they would train on whole ones."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class DistilledSet:
    """A distilled set, in pixel space.

    Real images lie in [0,1]; synthetic ones may leave it.
    """

    images: Tensor
    """(n,C,H,W) float32."""
    labels: Tensor
    """(n,) int64, or (n,K) float32 for soft labels (each row a distribution)."""
    learning_rate: float | None = None
    """The learning rate the set wants its students trained with; None: the track's."""
    augmentation: str | None = None
    """The augmentation the set wants its students trained with; None: the track's."""
    preprocessing: Preprocessing | None = None
    """The preprocessing the set was made for; None: the track's."""
    teacher: Teacher | None = None
    """A network that labels every view of an image, for tracks whose students are taught so; other
    tracks take the labels above."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that say where the set comes from."""
    mosaic: int = 1
    """Tiles a side of each image. Students do not see the images but their tiles, enlarged: see
    `robustdd_bench.protocol.mosaics`. The images per class of a track count stored images."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def training_images(self) -> int:
        """How many images students train on; more than are stored where these are mosaics."""
        return len(self) * self.mosaic**2

    def decoded(self) -> tuple[Tensor, Tensor]:
        """What students train on: images (m,C,H,W) in pixel space, m `training_images`, and labels.

        Where the images are no mosaics, they are what is stored.
        """
        images = decode_mosaics(self.images, self.mosaic)
        return images, repeat_labels(self.labels, self.mosaic)

    def __repr__(self) -> str:
        shape, kind = tuple(self.images.shape[1:]), "soft" if self.soft_labels else "hard"
        return f"DistilledSet({len(self)} images of {shape}, {kind} labels)"

    @property
    def soft_labels(self) -> bool:
        """Whether labels are distributions over classes."""
        return self.labels.ndim == 2

    def dataset(self) -> torch.utils.data.TensorDataset:
        """Images (C,H,W) in pixel space with their labels, for a loop of your own.

        Mosaics are taken apart: these are the images that students train on.
        """
        return torch.utils.data.TensorDataset(*self.decoded())

    def check(self, shape_CHW: Sequence[int], num_classes: int, ipc: int | None) -> None:
        """Raise RunFailedError unless the set is what the track asks for.

        Args:
            shape_CHW: channels, height and width of one image.
            num_classes: K.
            ipc: images per class, or None where any number will do.
        """
        images, labels = self.images, self.labels
        if images.dtype != torch.float32 or tuple(images.shape[1:]) != tuple(shape_CHW):
            raise RunFailedError(
                f"the distilled images must be float32 of shape (n, *{tuple(shape_CHW)}), "
                f"not {images.dtype} of shape {tuple(images.shape)}"
            )
        try:
            check_mosaic(images.shape[-2:], self.mosaic)
        except UsageError as error:
            raise RunFailedError(str(error)) from error
        count = len(labels) if labels.ndim else 0
        if len(images) == 0 or count != len(images):
            raise RunFailedError(f"{len(images)} distilled images do not go with {count} labels")
        if not bool(torch.isfinite(images).all()):
            raise RunFailedError("the distilled images hold NaN or infinity: the method diverged")
        if self.soft_labels:
            ok = labels.dtype == torch.float32 and labels.shape[1] == num_classes
            if not ok or not bool(torch.isfinite(labels).all()):
                raise RunFailedError(
                    f"soft labels must be finite float32 of shape (n, {num_classes})"
                )
            ones = torch.ones(len(labels), device=labels.device)
            if bool((labels < 0).any()) or not torch.allclose(labels.sum(1), ones, atol=1e-3):
                raise RunFailedError(
                    "each row of the soft labels must be a distribution over classes"
                )
            hard = labels.argmax(1)
        else:
            if labels.dtype != torch.int64 or labels.ndim != 1:
                raise RunFailedError(f"hard labels must be int64 of shape (n,), not {labels.dtype}")
            if bool((labels < 0).any()) or bool((labels >= num_classes).any()):
                raise RunFailedError(f"labels must lie in 0..{num_classes - 1}")
            hard = labels
        counts = torch.bincount(hard, minlength=num_classes).tolist()
        if ipc is not None and not self.soft_labels and counts != [ipc] * num_classes:
            raise RunFailedError(
                f"the track asks for {ipc} images of each class, the set has {counts}"
            )
        if ipc is not None and len(images) > ipc * num_classes:
            raise RunFailedError(f"the set has {len(images)} images, more than {ipc} per class")
        if self.teacher is not None:
            self.teacher.check()
        rate = self.learning_rate
        if rate is not None and not 0 < rate < float("inf"):
            raise RunFailedError(
                f"the learning rate of the set must be positive and finite, not {rate}"
            )

    def sha256(self) -> str:
        """A hash of everything in the set that shapes a student."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            hash_tensor(digest, tensor)
        digest.update(json.dumps(self._recipe(), sort_keys=True).encode())
        if self.teacher is not None:
            digest.update(self.teacher.sha256().encode())
        return digest.hexdigest()

    def _recipe(self) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "augmentation": self.augmentation,
            "preprocessing": None if self.preprocessing is None else identity(self.preprocessing),
        }
        # Left out where it is 1, so that sets from before there were mosaics keep their hash.
        return recipe if self.mosaic == 1 else recipe | {"mosaic": self.mosaic}

    def save(self, path: Path) -> None:
        """Write the set as safetensors, atomically."""
        from robustdd_bench.files import write_safetensors

        metadata = {"format": _FORMAT if self.mosaic == 1 else _FORMAT_OF_MOSAICS} | {
            key: json.dumps(value, sort_keys=True)
            for key, value in (self._recipe() | {"provenance": dict(self.provenance)}).items()
        }
        tensors = {"images": self.images, "labels": self.labels}
        if self.teacher is not None:
            metadata["teacher"] = json.dumps(self.teacher.spec(), sort_keys=True)
            tensors |= {TEACHER_PREFIX + name: t for name, t in self.teacher.weights.items()}
        write_safetensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> DistilledSet:
        """Read a set written by `save`.

        Raises:
            UsageError: the file is missing, damaged or of another format.
        """
        from robustdd_bench.files import read_safetensors

        tensors, metadata = read_safetensors(path)
        names = {name for name in tensors if not name.startswith(TEACHER_PREFIX)}
        whole = names == {"images", "labels"} and (len(tensors) > 2) == ("teacher" in metadata)
        if metadata.get("format") not in (_FORMAT, _FORMAT_OF_MOSAICS) or not whole:
            raise UsageError(f"{path} is not a distilled set of robustdd-bench")
        try:
            rate, augmentation, spec, provenance = (
                json.loads(metadata[key], parse_constant=_refuse)
                for key in ("learning_rate", "augmentation", "preprocessing", "provenance")
            )
            # A set may come from a stranger: what a caller computes with has to be what it says.
            if not (rate is None or (isinstance(rate, int | float) and not isinstance(rate, bool))):
                raise ValueError("learning_rate must be a number")
            if not isinstance(augmentation, str | None) or not isinstance(provenance, dict):
                raise ValueError("augmentation must be a text and provenance an object")
            mosaic = json.loads(metadata.get("mosaic", "1"), parse_constant=_refuse)
            check_mosaic((0, 0), mosaic)
            if (mosaic != 1) != (metadata["format"] == _FORMAT_OF_MOSAICS):
                raise ValueError(f"mosaic {mosaic} does not go with format {metadata['format']}")
            return cls(
                images=tensors["images"],
                labels=tensors["labels"],
                learning_rate=rate,
                augmentation=augmentation,
                preprocessing=None if spec is None else Preprocessing.from_dict(spec),
                teacher=_teacher(tensors, metadata.get("teacher")),
                provenance=provenance,
                mosaic=mosaic,
            )
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise UsageError(f"{path}: damaged metadata ({error})") from error


def _teacher(tensors: Mapping[str, Tensor], text: str | None) -> Teacher | None:
    if text is None:
        return None
    spec = json.loads(text, parse_constant=_refuse)
    if not isinstance(spec, dict) or set(spec) != {"network", "options"}:
        raise ValueError("teacher must name its network and options")
    if not isinstance(spec["network"], str) or not isinstance(spec["options"], dict):
        raise ValueError("the teacher's network must be a text and its options an object")
    weights = {
        name.removeprefix(TEACHER_PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(TEACHER_PREFIX)
    }
    return Teacher(network=spec["network"], options=spec["options"], weights=weights)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")
