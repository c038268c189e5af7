"""The Python entrance: what the commands do, as functions.

```python
import robustdd_bench as rdd

run = rdd.run("mat", track="digits-ipc10", seed=0)
print(run)                                  # the table that the command prints
student = rdd.train_student(run.set(), track="digits-ipc10")
print(rdd.attack(student, eps=0.1, attacks=["pgd"]))
```

The names are attributes of `robustdd_bench`, which loads this module when one of them is first
used: importing the package imports no torch. Errors are those of the commands, as exceptions:
`UsageError` where a call cannot work, `RunFailedError` and `PluginError` where the work failed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import nn

from robustdd_bench.attacks import Attack
from robustdd_bench.board.publish import published
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.entrance import (
    DATA,
    DEFAULT_TRACK,
    MEANS,
    OUT,
    Options,
    Records,
    Run,
    check,
    planned,
)
from robustdd_bench.errors import UsageError, unknown_name
from robustdd_bench.filenames import RECORD_FILE, STORE_FOLDER
from robustdd_bench.imports.external_set import store_imported, store_set
from robustdd_bench.plugins import PluginManager, Registry, collect, get_plugin_manager
from robustdd_bench.records.means import check_device
from robustdd_bench.records.plan import Plan, make_plan
from robustdd_bench.records.record import Record, read_record
from robustdd_bench.runs import single
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.execution.limits import TimeLimit
from robustdd_bench.runs.execution.processes import executor_for
from robustdd_bench.runs.pipeline import Finished, execute
from robustdd_bench.runs.progress.displays import (
    make_reporter,
    plugin_loggers,
)
from robustdd_bench.runs.reuse import plan_again
from robustdd_bench.runs.single import AttackResults, Student
from robustdd_bench.transfers.call import TransferOptions, matrix_of
from robustdd_bench.transfers.matrix import TransferMatrix

if TYPE_CHECKING:
    import numpy


@functools.cache
def plugins() -> PluginManager:
    """The installed plugins; looked for once."""
    return get_plugin_manager()


@functools.cache
def registry() -> Registry:
    """What the installed plugins register; asked for once."""
    return collect(plugins())


def run_plan(
    plan: Plan, manager: PluginManager, known: Registry, *, quiet: bool = False, **options: Any
) -> Finished:
    """Run a plan, or what is left of it; `robustdd run` calls this too.

    Args:
        plan: what to run.
        manager: the installed plugins; their loggers are told of the run.
        known: what they register.
        quiet: show no progress.
        **options: see `robustdd_bench.runs.pipeline.execute`.
    """
    publish = plugin_loggers(manager)
    return execute(
        plan,
        known,
        reporter=lambda folder: make_reporter(folder, publish=publish, quiet=quiet),
        **options,
    )


def _run(plan: Plan, options: Options, source: tuple[Path, Record] | None = None) -> Run:
    limit = options.get("time_limit")
    found = run_plan(
        plan,
        plugins(),
        registry(),
        quiet=options.get("quiet", False),
        executor=executor_for(
            options.get("jobs"),
            device=plan.device,
            threads=plan.threads,
            gpu=check_device(options.get("device", "auto")),
        ),
        out=Path(options.get("out", OUT)),
        data_root=Path(options.get("data_root", DATA)),
        download=options.get("download", False),
        witnesses=options.get("witnesses", False),
        fresh=options.get("fresh", False),
        source=source,
        limit=None if limit is None else TimeLimit(limit),
    )
    return Run(found.record, found.folder, found.reused)


def run(
    method: str,
    *,
    track: str = DEFAULT_TRACK,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    preset: str = "default",
    **options: Unpack[Options],
) -> Run:
    """Distil a dataset, train students on the set, attack them, and write a record.

    The same as `robustdd run`: the same call resumes an interrupted run, and a run that has
    ended is read and not made again.

    Args:
        method: a registered method, e.g. "mat".
        track: a registered track, or the path of a .toml file, of a record or of a run.
        seed: base of every seed.
        config: hyper-parameters of the method by name; see `robustdd show method NAME`.
        preset: named hyper-parameters.
        **options: see `Options`.

    Raises:
        UsageError: the call cannot work.
        RunFailedError, PluginError: the run failed; a record says where.
    """
    check(options)
    plan = make_plan(
        registry(),
        method=method,
        track=str(track),
        assignments=dict(config or {}),
        preset=preset,
        seed=seed,
        **planned(options),
    )
    return _run(plan, options)


def evaluate(
    images: DistilledSet | torch.Tensor | numpy.ndarray[Any, Any] | str | Path,
    labels: torch.Tensor | numpy.ndarray[Any, Any] | Sequence[int] | None = None,
    *,
    track: str | None = None,
    seed: int = 0,
    **options: Unpack[Options],
) -> Run:
    """Train students on a set that is there already, attack them, and write a record.

    Args:
        images: a set; or images (n,C,H,W) in pixel space, floating point; or the path of a
            `distilled.safetensors`; or the folder of a run, which is then done again from its set
            on, with its method, seed and split. A set that wants its students trained with a
            learning rate, an augmentation or a preprocessing of its own is a `DistilledSet`.
        labels: of images: (n,) classes, or (n,K) distributions.
        track: a track; by default the run's, else digits-ipc10.
        seed: base of every seed.
        **options: see `Options`.

    Raises:
        UsageError: the set does not fit the track, or the call cannot work.
        RunFailedError, PluginError: the run failed; a record says where.
    """
    check(options)
    path = Path(images) if isinstance(images, str | Path) else None
    if labels is not None and (path is not None or isinstance(images, DistilledSet)):
        raise UsageError("labels go with images; a set brings its own")
    if path is not None and path.is_dir():
        if seed != 0 or options.get("validate"):
            raise UsageError("seed and split are the run's; leave seed and validate out")
        means: dict[str, Any] = {name: options[name] for name in MEANS if name in options}
        plan, record = plan_again(registry(), path, track=track, **means)
        return _run(plan, options, (path, record))
    store = Path(options.get("out", OUT)) / STORE_FOLDER
    if path is not None:
        digest = store_set(path, store)
    else:
        made = images if isinstance(images, DistilledSet) else _set(images, labels)
        digest = store_imported(made, store)
    plan = make_plan(
        registry(),
        method="given",
        track=track or DEFAULT_TRACK,
        assignments={"sha256": digest},
        seed=seed,
        **planned(options),
    )
    return _run(plan, options)


def _set(images: Any, labels: Any) -> DistilledSet:
    """A set of images and labels as they come from torch or numpy."""
    if labels is None:
        raise UsageError("images need labels: evaluate(images, labels)")
    try:
        pixels, classes = torch.as_tensor(images).detach(), torch.as_tensor(labels).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"images and labels must be tensors or arrays: {error}") from error
    if not pixels.is_floating_point():
        raise UsageError(
            f"images must be floating point in [0,1], not {pixels.dtype}; divide by 255"
        )
    kind = torch.float32 if classes.is_floating_point() else torch.int64
    return DistilledSet(images=pixels.cpu().float(), labels=classes.cpu().to(kind))


def load_run(folder: str | Path) -> Run:
    """A run that has ended, from its folder, published or not.

    Raises:
        UsageError: there is no valid record.
    """
    return Run(read_record(Path(folder) / RECORD_FILE), Path(folder), reused=True)


def load_records(board: str | Path = "leaderboard") -> Records:
    """The published runs of a board, by track, method and run id.

    Args:
        board: the folder that holds `results/`.

    Raises:
        UsageError: there is no board, or a record is not valid.
    """
    if not Path(board).is_dir():
        raise UsageError(f"there is no board in {board}; name the folder that holds results/")
    return Records(tuple(Run(one.record, one.folder, True) for one in published(Path(board))))


def load_set(
    track: str, method: str, seed: int = 0, *, board: str | Path = "leaderboard"
) -> DistilledSet:
    """A published set.

    Args:
        track: its track, e.g. "digits-ipc10" or "digits-ipc10@2".
        method: its method.
        seed: its seed.
        board: the folder that holds `results/`.

    Raises:
        UsageError: there is none, or several runs with other settings; the message names them.
    """
    everything = load_records(board)
    of_track = everything.where(track=track)
    if not of_track:
        tracks = {run.record.track.name for run in everything}
        raise unknown_name(f"track of {board}", track, tracks)
    of_method = of_track.where(method=method)
    if not of_method:
        methods = {run.record.method.name for run in of_track}
        raise unknown_name(f"method of {track}", method, methods)
    found = [run for run in of_method.where(seed=seed) if not run.record.method.reference]
    if not found:
        seeds = sorted({run.record.seed for run in of_method})
        raise UsageError(f"{method} on {track} has no set of seed {seed}; there are {seeds}")
    if len(found) > 1:
        folders = ", ".join(str(run.folder) for run in found)
        raise UsageError(f"several runs fit; take load_run(FOLDER).set() of one of: {folders}")
    return found[0].set()


@functools.lru_cache(maxsize=4)
def _bench(track: str, seed: int, device: str, compile: str, data_root: Path) -> RunContext:
    plan = make_plan(
        registry(), method="given", track=track, seed=seed, device=device, compile=compile
    )
    return RunContext(plan, registry(), Path("runs"), data_root)


def train_student(
    distilled: DistilledSet,
    track: str = DEFAULT_TRACK,
    *,
    seed: int = 0,
    index: int = 0,
    device: str = "auto",
    compile: str = "auto",
    data_root: str | Path = DATA,
) -> Student:
    """Train a student on a set by a track's recipe: the student that a run of that seed trains.

    Args:
        distilled: the set.
        track: its recipe, network and data.
        seed: of the run.
        index: which of the run's students, from 0.
        device: "auto", "cpu" or "cuda".
        compile: "auto", "on" or "off": compiled kernels.
        data_root: folder of the datasets.

    Raises:
        UsageError: the set does not fit the track.
        RunFailedError: the training diverged.
    """
    context = _bench(str(track), seed, device, compile, Path(data_root))
    return single.train(context, distilled, index)


def attack(
    student: Student | nn.Module,
    track: str | None = None,
    *,
    eps: float | Sequence[float] | None = None,
    attacks: Sequence[str] | Mapping[str, Attack] | None = None,
    sources: Sequence[nn.Module] = (),
    seed: int = 0,
    index: int = 0,
    device: str = "auto",
    compile: str = "auto",
    data_root: str | Path = DATA,
) -> AttackResults:
    """Attack a student, or any network, on the images that the track judges on.

    Args:
        student: what `train_student` gave; or a network of your own, from pixels (B,C,H,W) in
            [0,1] to logits (B,K), in eval mode. It is moved to the device.
        track: whose suite; by default that of the student.
        eps: one or several; by default those that the track says for each attack.
        attacks: names of the suite, or `{name: Attack}` of your own; by default the suite.
        sources: other networks, for an attack that moves examples over from them.
        seed: of a network of your own, as are those below: whose noise the attacks draw.
        index: as that of which of the run's students.
        device: "auto", "cpu" or "cuda".
        compile: "auto", "on" or "off": compiled kernels.
        data_root: folder of the datasets.

    Raises:
        UsageError: an attack is not in the suite, or the call cannot work.
        PluginError: an attack failed.
    """
    levels = None if eps is None else _levels(eps)
    if isinstance(student, Student) and track in (None, student.track.name, student.track.id):
        context, network, index = student.context, student.network, student.index
    else:
        network = student.network if isinstance(student, Student) else student
        context = _bench(str(track or DEFAULT_TRACK), seed, device, compile, Path(data_root))
        network = network.to(context.device)
    return single.attack(context, network, index, levels=levels, attacks=attacks, sources=sources)


def transfer(
    runs: Sequence[str | Path | Run], **options: Unpack[TransferOptions]
) -> TransferMatrix:
    """Try adversarial examples made on the students of each run on those of every run.

    Args:
        runs: folders of runs that have their students, or what `run` and `evaluate` gave.
        **options: see `TransferOptions`.

    Raises:
        UsageError: the runs do not belong together, one has no students, or an option is wrong.
        PluginError: the attack failed.
    """
    paths = [one.folder if isinstance(one, Run) else Path(one) for one in runs]
    return matrix_of(paths, registry(), options)


def _levels(eps: float | Sequence[float]) -> list[float]:
    """One eps or several, as a list."""
    given = [eps] if isinstance(eps, int | float | str) else list(eps)
    good = [isinstance(one, int | float) and 0 < one < math.inf for one in given]
    if not given or not all(good):
        raise UsageError(f"eps must be positive and finite, one number or several, not {eps!r}")
    return given
