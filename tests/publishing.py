"""What may be published in tests: the track `fast` as an installed one, and forged runs."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

from small_runs import TRACK, example, registry
from strangers import HOOK

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.figures import save_distilled
from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.plugins import Registry, collect, get_plugin_manager
from robustdd_bench.records.record import Record, make_record, write_record
from robustdd_bench.records.set_info import set_info
from robustdd_bench.seeds import Seeds

__all__ = ["copied", "forged", "install_fast", "installed", "refitted", "registry"]

PLUGIN = HOOK + (
    "@hookimpl\n"
    "def robustdd_register_tracks(register):\n"
    "    register('fast', 'robustdd_fast.tracks:fast.toml', 'for tests')\n"
)


class _Fast:
    @hookimpl
    def robustdd_register_tracks(self, register):
        register("fast", "data:fast.toml", "for tests")


@cache
def installed() -> Registry:
    """What is installed, and the track `fast`."""
    return collect(get_plugin_manager([("fast", _Fast())]))


def install_fast(folder: Path) -> str:
    """A distribution that registers the track `fast`; what `sys.path` has to hold."""
    tracks = folder / "robustdd_fast" / "tracks"
    tracks.mkdir(parents=True)
    (folder / "robustdd_fast" / "__init__.py").write_text(PLUGIN)
    shutil.copyfile(TRACK, tracks / "fast.toml")
    info = folder / "robustdd_fast-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: robustdd-fast\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[robustdd]\nfast = robustdd_fast\n")
    return str(folder)


def forged(record: Record, **changes) -> Record:
    """The record with other values and every hash made to fit, as a careful forger would."""
    fields = {name: getattr(record, name) for name in Record.model_fields} | changes
    del fields["results_sha256"]
    draft = Record.model_construct(**fields)
    fields |= {"run_id": draft.plan().run_id(), "track_sha256": draft.track.sha256()}
    fields["command"] = f"robustdd run --method {draft.method.name} --seed {draft.seed}"
    return make_record(**fields)


def refitted(record: Record, distilled: DistilledSet) -> Record:
    """The record of another set."""
    return forged(record, distilled=set_info(distilled, record.data.num_classes))


def reseeded(record: Record, seed: int) -> Record:
    """The record under another seed, with the seeds that follow from it."""
    seeds = Seeds(seed, record.track.family, "").shared()
    students = tuple(
        student.model_copy(
            update={
                "seed": seeds.seed("student-init", student.index),
                "attacks": tuple(
                    result.model_copy(
                        update={"seed": seeds.seed("attack", result.attack, student.index)}
                    )
                    for result in student.attacks
                ),
            }
        )
        for student in record.students
    )
    return forged(record, seed=seed, students=students)


def renamed(record: Record, name: str, **changes) -> Record:
    """The record as that of another method."""
    method = record.method.model_copy(update={"name": name, **changes})
    return forged(record, method=method)


def copied(root: Path, record: Record | None = None, method: str = "random") -> Path:
    """A run's folder under `root`, where its record belongs: that of `example(method)`.

    Args:
        root: the folder of runs, or `results/` of a board.
        record: the record to write; None: the run's own.
        method: whose set and preview it has.
    """
    finished = example(method)
    record = record or finished.record
    folder = root / record.track.name / record.method.name / record.run_id
    folder.mkdir(parents=True)
    names = ["distilled.png"]
    names += [] if record.method.reference else ["distilled.safetensors"]
    for name in names:
        shutil.copyfile(finished.folder / name, folder / name)
    write_record(folder / "record.json", record)
    return folder


def fit_set(folder: Path, record: Record, distilled: DistilledSet) -> None:
    """Put another set and its preview into a run's folder."""
    distilled.save(folder / "distilled.safetensors")
    save_distilled(folder / "distilled.png", distilled, record.data.num_classes)
