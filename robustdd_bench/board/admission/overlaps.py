"""Distilled sets held against the images of their dataset, where that is at hand.

A record says itself how many images of its set are copies; here it is not believed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from robustdd_bench.board.admission.tensors import read_set
from robustdd_bench.errors import RobustDDError, UsageError
from robustdd_bench.evaluation.overlap import overlap
from robustdd_bench.filenames import SET_FILE
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.datasets import ImageData
from robustdd_bench.protocol.loading import load_data
from robustdd_bench.records.parts import OverlapInfo
from robustdd_bench.records.record import Record
from robustdd_bench.text.terminal import one_line


class DataAtHand:
    """The datasets of this machine, for comparisons with published sets.

    Args:
        registry: the installed plugins.
        root: where datasets are looked for; nothing is downloaded.
    """

    def __init__(self, registry: Registry, root: Path) -> None:
        self._registry = registry
        self._root = root
        self._key = ""
        self._data: ImageData | str = ""
        self._hashes = ("", "")
        self.notes: list[str] = []
        """What could not be compared, each once."""

    def reasons(self, record: Record, folder: Path) -> list[str]:
        """What the images say against a run on a board; empty where they cannot be compared.

        Args:
            record: a complete record.
            folder: where its set is.
        """
        if record.status != "complete" or record.method.reference or record.split != "test":
            return []
        assert record.data is not None
        data = self._load(record)
        if isinstance(data, str):
            self._note(f"{record.track.id}: sets are not compared with the images: {data}")
            return []
        if self._hashes != (record.data.train_sha256, record.data.evaluation_sha256):
            self._note(
                f"{record.track.id}: sets are not compared with the images: the data under "
                f"{self._root} are not those of the records"
            )
            return []
        try:
            images, _ = read_set(folder / SET_FILE, record).decoded()
        except UsageError:
            return []  # `reasons_against` says what is wrong with the file
        found = overlap(images, data.train.images, data.test.images)
        reasons = copies_against(OverlapInfo(**dataclasses.asdict(found)))
        said = record.overlap
        if said is not None:
            reasons += [
                f"overlap.{key}: the record says {getattr(said, key)}, it is {getattr(found, key)}"
                for key in ("exact_test", "near_test", "exact_train")
                if getattr(said, key) != getattr(found, key)
            ]
        return reasons

    def _load(self, record: Record) -> ImageData | str:
        """The data of a track, or why they are not there; those of the last one are kept."""
        key = json.dumps(record.track.data.model_dump(mode="json"), sort_keys=True)
        if key != self._key:
            try:
                data = load_data(record.track, self._registry, self._root)
                self._data, self._hashes = data, (data.train.sha256(), data.test.sha256())
            except RobustDDError as error:
                self._data = one_line(error, 200)
            self._key = key
        return self._data

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def copies_against(found: OverlapInfo | None) -> list[str]:
    """Why a set with those copies cannot be on a board; empty if it can."""
    if found is None or not found.exact_test:
        return []
    what = "image is an exact copy" if found.exact_test == 1 else "images are exact copies"
    return [
        f"{found.exact_test} of {found.images} {what} of test images; a set is made of training "
        "data alone"
    ]
