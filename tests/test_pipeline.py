"""Runs: what they leave, that nothing is computed twice, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from commands import press_ctrl_c
from small_runs import (
    PROMISED,
    SETTINGS,
    TRACK,
    WITHOUT_STEPS,
    copy_of,
    example,
    files,
    plan_of,
    record_json,
    registry,
    run,
    without_costs,
)

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import PluginError, RunFailedError, UsageError
from robustdd_bench.evaluation.outcomes import unpack_bits
from robustdd_bench.executors import STAGES, LocalExecutor
from robustdd_bench.records.environment import process
from robustdd_bench.records.record import read_record
from robustdd_bench.runs import judging
from robustdd_bench.runs.cells import cell_named, cells_of
from robustdd_bench.runs.context import RunContext
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.seeds import Seeds

METHODS = ("random", "mtt", "mat")


class Counting(LocalExecutor):
    """Runs cells here and remembers their names."""

    def __init__(self, stop_after=None):
        self.names = []
        self._stop_after = stop_after

    def submit(self, cell, job):
        if self._stop_after is not None and len(self.names) >= self._stop_after:
            press_ctrl_c()
        done = super().submit(cell, job)
        if done.exception() is None:
            self.names.append(cell.name)
        return done


def cell_names(method):
    students = [f"students/{r}" for r in range(2)]
    attacks = [f"attacks/{r}/{a}" for a in ("noise", "fgsm", "pgd") for r in range(2)]
    experts = [] if method == "random" else [f"experts/expert-{k}" for k in range(2)]
    return [*experts, "distill", *students, *attacks, *(f"sanity/{r}" for r in range(2))]


# What a run leaves.


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_the_promised_files_and_its_cells(method) -> None:
    finished = example(method)
    found = files(finished.folder)
    rest = {"plan.json", ".lock", "distilled.safetensors.cell.json"}
    top = {name for name in found if "/" not in name}
    assert top - rest == PROMISED
    cells = {name for name in found if "/" in name}
    shown = {name for name in cells if name.startswith("snapshots/")}
    steps = () if method == "random" else (0, 1, 3)
    assert shown == {f"snapshots/{step:08d}.png" for step in steps}
    cells -= shown
    outputs = {f"cells/student-{r}.safetensors" for r in range(2)}
    outputs |= {f"cells/sanity-{r}.json" for r in range(2)}
    outputs |= {f"cells/attack-{a}-{r}.json" for r in range(2) for a in ("noise", "fgsm", "pgd")}
    assert cells == outputs | {f"{name}.cell.json" for name in outputs}
    assert not (finished.folder / "work").exists()


SHIPPED = sorted(
    name for name, entry in registry().entries["distillers"].items() if entry.plugin != "crooks"
)


@pytest.mark.parametrize("method", SHIPPED)
def test_every_method_leaves_values_of_every_student_and_of_every_step(method) -> None:
    assert method in SETTINGS or method in WITHOUT_STEPS, "its defaults may take hours: SETTINGS"
    rows = [
        json.loads(line)
        for line in (example(method).folder / "metrics.jsonl").read_text().splitlines()
    ]
    students = [row for row in rows if row["stage"] == "students"]
    assert [row["step"] for row in students] == [0, 1]
    assert all(row["clean"] > 0 for row in students)
    if method not in WITHOUT_STEPS:
        steps = [row["step"] for row in rows if row["stage"].startswith("distill/")]
        assert steps == [1, 2, 3]


@pytest.mark.parametrize("method", METHODS)
def test_the_record_holds_the_plan_the_set_and_every_student(method) -> None:
    finished = example(method)
    plan, record = plan_of(method), finished.record
    assert not finished.reused
    assert record == read_record(finished.folder / "record.json")
    assert (record.status, record.split, record.run_id) == ("complete", "test", plan.run_id())
    assert record.plan() == dataclasses.replace(plan, track_source="fast", overrides=plan.config)
    distilled = DistilledSet.load(finished.folder / "distilled.safetensors")
    assert record.distilled.sha256 == distilled.sha256()
    assert record.distilled.images_per_class == (2,) * 10
    assert (distilled.learning_rate is None) == (method == "random")
    assert [student.index for student in record.students] == [0, 1]
    assert record.students[0].sha256 != record.students[1].sha256
    assert len(unpack_bits(record.students[0].clean)) == record.data.evaluation_examples == 90
    assert [stage.stage for stage in record.costs.stages] == [
        *([] if method == "random" else ["experts"]),
        "distill",
        "students",
        "attacks",
        "sanity",
    ]
    assert all(stage.wall_s > 0 and stage.peak_bytes > 0 for stage in record.costs.stages)


def test_the_full_data_are_a_reference_and_may_hold_more_images() -> None:
    record = example("full").record
    assert record.method.reference
    assert record.distilled.images == record.data.train_examples > 1000


def test_the_seeds_of_students_and_attacks_are_shared_by_methods_and_not_by_runs() -> None:
    def seeds(record):
        return [(s.seed, [a.seed for a in s.attacks]) for s in record.students]

    first = example("random").record
    assert seeds(first) == seeds(example("mtt").record)
    other = example("random", seed=1).record
    assert not {s for s, _ in seeds(first)} & {s for s, _ in seeds(other)}
    assert not {a for _, s in seeds(first) for a in s} & {a for _, s in seeds(other) for a in s}
    assert first.students[0].seed == Seeds(0, "fast").seed("student-init", 0)


@pytest.mark.parametrize("method", ["random", "mat"])
def test_two_runs_into_different_folders_are_the_same_bit_for_bit(method, tmp_path) -> None:
    first, second = example(method), run(plan_of(method), tmp_path)
    assert without_costs(first.record) == without_costs(second.record)
    one, two = files(first.folder), files(second.folder)
    assert one.keys() == two.keys()
    costly = ("record.json", "plan.json", "run.log", ".cell.json")
    same = [name for name in one if not name.endswith(costly)]
    assert len(same) > 12
    for name in same:
        assert one[name].read_bytes() == two[name].read_bytes(), name


def test_a_run_computes_with_its_threads_and_leaves_them_as_they_were(tmp_path) -> None:
    before, seen = torch.get_num_threads(), []

    class Looking(NullReporter):
        def metrics(self, step, **values):
            seen.append(torch.get_num_threads())
            press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        run(plan_of("random", threads=before + 1), tmp_path, reporter=Looking)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_a_method_that_draws_from_the_global_generator_is_repeatable_and_leaves_no_trace(
    tmp_path,
) -> None:
    records = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        records.append(without_costs(run(plan_of("gambler"), tmp_path / str(seed)).record))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert records[0] == records[1]


# The test split stays out of the method's reach.


@pytest.mark.parametrize("validate", [False, True])
def test_the_method_is_given_training_images_and_nothing_else(validate, tmp_path) -> None:
    spy = registry().get("distillers", "spy").load()
    spy.seen.clear()
    record = run(plan_of("spy", validate=validate), tmp_path).record
    (task,) = spy.seen
    context = RunContext(plan_of("spy", validate=validate), registry(), tmp_path, Path())
    test = context._data.test
    given = {image.numpy().tobytes() for image in task.images}
    held = [test, context.evaluation] if validate else [test]
    for split in held:
        assert not {image.numpy().tobytes() for image in split.images} & given
    assert len(task.images) + (len(context.evaluation) if validate else 0) == len(
        context._data.train
    )
    for tensor in (task.images, task.labels):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    reachable = [getattr(task, name) for name in task.__dataclass_fields__]
    assert not any(value is context.evaluation or value is test for value in reachable)
    assert record.data.train_examples == len(task.images)
    assert record.split == ("validation" if validate else "test")
    assert record.data.evaluation_examples == len(context.evaluation)


def test_a_dataset_whose_splits_share_memory_does_not_hand_the_test_split_over() -> None:
    context = RunContext(plan_of("spy"), registry(), Path(), Path())
    data = context._data
    whole = torch.cat([data.train.images, data.test.images])
    views = data.train.__class__(whole[: len(data.train)], data.train.labels)
    context.__dict__["_data"] = data.__class__(views, data.test, 10)
    assert context.train.images.untyped_storage().nbytes() < whole.untyped_storage().nbytes()
    assert torch.equal(context.train.images, data.train.images)


def test_a_method_that_writes_into_the_training_images_fails(tmp_path) -> None:
    with pytest.raises(PluginError, match="wrote into the training images"):
        run(plan_of("scribbler"), tmp_path)


# Nothing is computed twice.


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_ended_is_not_run_again(method, tmp_path) -> None:
    folder = copy_of(example(method), tmp_path)
    before = {name: path.stat().st_mtime_ns for name, path in files(folder).items()}
    counting = Counting()
    again = run(plan_of(method), tmp_path, executor=counting)
    assert again.reused
    assert counting.names == []
    assert again.record == example(method).record
    after = {name: path.stat().st_mtime_ns for name, path in files(folder).items()}
    assert {k: v for k, v in after.items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }


def test_fresh_forgets_the_run_and_keeps_the_stored_experts(tmp_path) -> None:
    folder = copy_of(example("mtt"), tmp_path)
    (folder / "something").write_text("left")
    counting = Counting()
    again = run(plan_of("mtt"), tmp_path, executor=counting, fresh=True)
    assert not again.reused
    assert counting.names == cell_names("mtt")[2:]
    assert not (folder / "something").exists()
    assert without_costs(again.record) == without_costs(example("mtt").record)


def test_methods_share_experts_of_one_recipe(tmp_path) -> None:
    copy_of(example("mtt"), tmp_path)
    counting = Counting()
    run(plan_of("mtt", "iterations=2"), tmp_path, executor=counting)
    assert counting.names[0] == "distill"


DAMAGES = {
    "a byte of a student": ("cells/student-1.safetensors", "flip", "students/1"),
    "a truncated set": ("distilled.safetensors", "cut", "distill"),
    "a missing student": ("cells/student-0.safetensors", "remove", "students/0"),
    "an outcome edited": ("cells/attack-pgd-0.json", "flip", "attacks/0/pgd"),
    "a receipt of nonsense": ("cells/sanity-1.json.cell.json", "nonsense", "sanity/1"),
    "a receipt without costs": ("cells/attack-fgsm-0.json.cell.json", "partial", "attacks/0/fgsm"),
    "an empty receipt": ("distilled.safetensors.cell.json", "empty", "distill"),
    "a damaged record": ("record.json", "cut", None),
    "a record of nonsense": ("record.json", "nonsense", None),
    "a missing picture": ("robustness.png", "remove", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_and_made_again(damage, tmp_path) -> None:
    name, how, cell = DAMAGES[damage]
    folder = copy_of(example("random"), tmp_path)
    path = folder / name
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[-10] ^= 1
    elif how == "cut":
        del content[len(content) // 2 :]
    elif how == "nonsense":
        content = bytearray(b'[1, {"sha256": 3}]\n')
    elif how == "partial":
        fields = json.loads(content)
        content = bytearray(json.dumps({"sha256": fields["sha256"], "wall_s": "x"}).encode())
    path.unlink()
    if how != "remove":
        path.write_bytes(b"" if how == "empty" else content)
    counting = Counting()
    again = run(plan_of("random"), tmp_path, executor=counting)
    assert not again.reused
    # What is made again is the same, so what was made of it need not be.
    assert counting.names == ([] if cell is None else [cell])
    assert without_costs(again.record) == without_costs(example("random").record)
    original = example("random").folder
    if not name.endswith("json"):
        assert path.read_bytes() == (original / name).read_bytes()


def test_what_was_made_of_another_set_is_made_again(tmp_path) -> None:
    folder = copy_of(example("random"), tmp_path)
    (folder / "record.json").unlink()
    path = folder / "distilled.safetensors"
    found = DistilledSet.load(path)
    DistilledSet(images=found.images * 0.9, labels=found.labels).save(path)
    receipt = path.with_name(path.name + ".cell.json")
    cell = next(iter(cells_of(RunContext(plan_of(), registry(), tmp_path, Path()), "distill")))
    assert not cell.done()
    # As a GPU's rounding would do it.
    cell.sign(wall_s=1.0, peak_bytes=1, items=1, unit="steps", process=process("cpu"))
    assert receipt.exists()
    counting = Counting()
    run(plan_of("random"), tmp_path, executor=counting)
    assert counting.names == cell_names("random")[1:]


def folder_plan(tmp_path):
    text = TRACK.read_text()
    text = text.replace("options = { test_fraction = 0.05, split_seed = 0 }", "")
    text = text.replace('dataset = "digits"', 'dataset = "folder"').replace("ipc = 2", "ipc = 1")
    (tmp_path / "t.toml").write_text(text)
    return plan_of("random", track=str(tmp_path / "t.toml"))


def write_folder(root, seed):
    from PIL import Image

    generator = torch.Generator().manual_seed(seed)
    for part in ("train", "test"):
        for k in range(2):
            place = root / part / f"class-{k}"
            place.mkdir(parents=True, exist_ok=True)
            for i in range(3):
                pixels = torch.randint(256, (8, 8, 3), generator=generator).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / f"{i}.png")


def test_a_run_of_other_data_is_another_result_even_in_the_same_folder(tmp_path) -> None:
    plan, data = folder_plan(tmp_path), tmp_path / "data"
    write_folder(data, 0)
    first = run(plan, tmp_path / "runs", data_root=data)
    assert run(plan, tmp_path / "runs", data_root=data).reused
    write_folder(data, 1)
    second = run(plan, tmp_path / "runs", data_root=data)
    assert not second.reused
    assert second.record.data.train_sha256 != first.record.data.train_sha256
    shutil.rmtree(data)  # the data are gone, but the record stands
    assert run(plan, tmp_path / "runs", data_root=data).record == second.record


# Killed and interrupted runs.

MOMENTS = {
    "after the first expert": ("mat", ["cell", 1]),
    "in the middle of an expert": ("mat", ["metrics", 3]),
    "in the middle of the matching": ("mat", ["metrics", 6]),
    "while an expert is written": ("mat", ["write", r"expert-1\.safetensors$"]),
    "while the checkpoint is written": ("mtt", ["write", r"matching\.safetensors$"]),
    "while a snapshot is written": ("mtt", ["write", r"snapshots/00000003\.png$"]),
    "while the set is written": ("mat", ["write", r"distilled\.safetensors$"]),
    "between the set and its receipt": ("mat", ["receipt", "distill"]),
    "after the distillation": ("mtt", ["cell", 3]),
    "between students": ("mat", ["cell", 4]),
    "while a student is written": ("random", ["write", r"student-1\.safetensors$"]),
    "between attacks": ("random", ["cell", 5]),
    "between an outcome and its receipt": ("random", ["receipt", "attacks/1/fgsm"]),
    "before the last check": ("random", ["cell", 10]),
    "while a picture is written": ("random", ["write", r"robustness\.png$"]),
    "while the record is written": ("random", ["write", r"record\.json$"]),
    "when the record is there": ("mat", ["record", ""]),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folders of runs that were killed, by moment."""
    root = tmp_path_factory.mktemp("killed")
    jobs = {
        name: {"out": str(root / str(i)), "method": method, "moment": moment}
        for i, (name, (method, moment)) in enumerate(MOMENTS.items())
    }
    (root / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(root / "jobs.json")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout).values()) == {int(signal.SIGKILL)}, done.stdout
    return {name: Path(job["out"]) for name, job in jobs.items()}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_in_the_record_of_an_unbroken_one(moment, killed, tmp_path) -> None:
    method, (kind, value) = MOMENTS[moment]
    out = killed[moment]
    whole, plan = example(method), plan_of(method)
    done = {
        path: path.stat().st_mtime_ns
        for path in files(out).values()
        if path.with_name(path.name + ".cell.json").exists()
    }
    counting = Counting()
    finished = run(plan, out, executor=counting)
    assert finished.record.results_sha256 == whole.record.results_sha256
    assert without_costs(finished.record) == without_costs(whole.record)
    shown = [name for name in files(whole.folder) if name.startswith("snapshots/")]
    assert len(shown) == (0 if method == "random" else 3)
    for name in ("distilled.safetensors", "distilled.png", "robustness.png", *shown):
        assert (finished.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    rows, all_rows = (
        (folder / "metrics.jsonl").read_text().splitlines()
        for folder in (finished.folder, whole.folder)
    )
    # Values of the last seconds before a kill may be lost, but none is there twice or differs.
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(all_rows)
    if kind in ("cell", "receipt", "record"):
        assert rows == all_rows
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert set(files(finished.folder)) == set(files(whole.folder))
    todo = len(cell_names(method)) - len(done)
    assert len(counting.names) == (0 if finished.reused else todo)
    assert finished.reused == (kind == "record")
    if kind == "cell":
        assert len(done) == value


def test_an_interrupted_run_says_what_is_kept_and_how_to_go_on(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        run(plan_of("mtt"), tmp_path, executor=Counting(stop_after=4))
    assert str(caught.value) == (
        f"interrupted; kept in {plan_of('mtt').folder(tmp_path)}: experts 2/2, distill 1/1, "
        "students 1/2. Repeat the command to resume."
    )
    counting = Counting()
    finished = run(plan_of("mtt"), tmp_path, executor=counting)
    assert counting.names == cell_names("mtt")[4:]
    assert without_costs(finished.record) == without_costs(example("mtt").record)


def test_an_interrupt_in_the_distillation_keeps_its_checkpoint(tmp_path) -> None:
    class Interrupting(NullReporter):
        def metrics(self, step, **values):
            if "alpha" in values and step == 2:
                press_ctrl_c()
            super().metrics(step, **values)

    with pytest.raises(KeyboardInterrupt, match="a checkpoint of the distillation"):
        run(plan_of("mtt"), tmp_path, reporter=Interrupting)
    steps = []

    class Looking(NullReporter):
        def metrics(self, step, **values):
            steps.extend([step] if "alpha" in values else [])
            super().metrics(step, **values)

    finished = run(plan_of("mtt"), tmp_path, reporter=Looking)
    assert steps == [2, 3]
    assert finished.record.results_sha256 == example("mtt").record.results_sha256
    matching = next(s for s in finished.record.costs.stages if s.stage == "distill")
    assert (matching.items, matching.unit) == (4, "student steps")  # two iterations of two


def test_a_record_tells_what_was_worked_through() -> None:
    context = RunContext(plan_of("mtt"), registry(), Path("runs"), Path("data"))
    stages = {stage.stage: stage for stage in example("mtt").record.costs.stages}
    two_experts_of_two_epochs = 4 * len(context.task.images)
    assert (stages["experts"].items, stages["experts"].unit) == (
        two_experts_of_two_epochs,
        "images",
    )
    assert (stages["distill"].items, stages["distill"].unit) == (6, "student steps")
    dm = next(s for s in example("dm").record.costs.stages if s.stage == "distill")
    assert (dm.items, dm.unit) == (3, "steps")


def test_an_interrupt_before_anything_was_done_says_so(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt, match="nothing yet"):
        run(plan_of("random"), tmp_path, executor=Counting(stop_after=0))


def test_the_second_run_into_a_folder_stops_at_once_until_the_first_is_dead(tmp_path) -> None:
    plan = plan_of("random")
    folder = plan.folder(tmp_path)
    folder.mkdir(parents=True)
    hold = (
        "import filelock, sys, time\n"
        f"lock = filelock.FileLock({str(folder / '.lock')!r})\n"
        "lock.acquire()\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=r"another process .*choose another"):
            run(plan, tmp_path)
        other.kill()
        other.wait()
    assert set(files(folder)) == {".lock"}
    assert run(plan, tmp_path).record.status == "complete"


# What goes wrong.


def failed_run(plan, out, error=RunFailedError, **options):
    with pytest.raises(error) as caught:
        run(plan, out, **options)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    record = read_record(plan.folder(Path(out)) / "record.json")
    assert record.status == "failed"
    assert record.failure.reason == str(caught.value)
    assert (record.aggregates, record.students, record.distilled) == (None, (), None)
    assert not record.publishable
    return record.failure, str(caught.value)


@pytest.mark.parametrize(
    ("method", "stage", "line"),
    [
        (
            "raising",
            "distill",
            "plugin 'crooks': method 'raising' failed: ZeroDivisionError: two lines of reasons",
        ),
        (
            "unmakeable",
            "set-up",
            "plugin 'crooks': method 'unmakeable' failed: ZeroDivisionError: no way",
        ),
        ("not-a-set", "distill", "plugin 'crooks': .*must return a DistilledSet, not dict"),
        ("strange-recipe", "distill", "plugin 'crooks': the set .*cannot be used: unknown aug"),
        ("strange-provenance", "distill", "plugin 'crooks': the set .*cannot be used: .*JSON"),
    ],
)
def test_code_of_a_plugin_that_fails_is_named(method, stage, line, tmp_path) -> None:
    failure, reason = failed_run(plan_of(method), tmp_path, PluginError)
    assert (failure.stage, failure.cell, failure.error) == (stage, stage, "PluginError")
    assert re.search(line, reason), reason


@pytest.mark.parametrize(
    ("method", "cell", "line"),
    [
        ("nan", "distill", "the distilled images hold NaN or infinity"),
        ("divergent", "students/0", "student 0 diverged"),
        ("memory", "distill", "out of memory in distill: set a smaller batch size"),
    ],
)
def test_a_run_that_diverges_or_runs_out_of_memory_is_recorded(
    method, cell, line, tmp_path
) -> None:
    failure, reason = failed_run(plan_of(method), tmp_path)
    assert failure.cell == cell
    assert line in reason
    with pytest.raises(RunFailedError):  # it fails again for the same reason
        run(plan_of(method), tmp_path)


def test_what_was_done_before_a_failure_is_kept(tmp_path) -> None:
    failure, _ = failed_run(plan_of("half"), tmp_path, PluginError)
    assert failure.cell == "experts/half-1"
    folder = plan_of("half").folder(tmp_path)
    record = read_record(folder / "record.json")
    assert [(s.stage, s.cells) for s in record.costs.stages] == [("experts", 1)]
    before = (folder / "work" / "half-0.txt").stat().st_mtime_ns
    failed_run(plan_of("half"), tmp_path, PluginError)
    assert (folder / "work" / "half-0.txt").stat().st_mtime_ns == before


def test_an_error_of_the_harness_itself_is_recorded_and_one_line(tmp_path, monkeypatch) -> None:
    def broken(*_, **__):
        raise RuntimeError("the\nunthinkable")

    monkeypatch.setattr(judging, "train_student", broken)
    failure, reason = failed_run(plan_of("random"), tmp_path)
    assert reason == "students/0 failed: RuntimeError: the unthinkable"
    assert failure.stage == "students"
    monkeypatch.undo()
    finished = run(plan_of("random"), tmp_path)
    assert without_costs(finished.record) == without_costs(example("random").record)
    assert "Traceback" in (finished.folder / "run.log").read_text()


def test_a_full_disk_is_told_as_such_even_where_no_record_can_be_written(
    tmp_path, monkeypatch
) -> None:
    replace = os.replace

    def full(source, target):
        if "student-1" in str(target) or "record" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFailedError, match=r"student-1\.safetensors: No space left on device"):
        run(plan_of("random"), tmp_path)
    monkeypatch.undo()
    folder = plan_of("random").folder(tmp_path)
    assert not (folder / "record.json").exists()
    counting = Counting()
    finished = run(plan_of("random"), tmp_path, executor=counting)
    assert counting.names == cell_names("random")[2:]
    assert without_costs(finished.record) == without_costs(example("random").record)


def test_more_images_per_class_than_there_are_is_told_before_experts_are_trained(tmp_path) -> None:
    track = tmp_path / "t.toml"
    track.write_text(TRACK.read_text().replace("ipc = 2", "ipc = 200"))
    counting = Counting()
    plan = plan_of("mat", track=str(track))
    with pytest.raises(UsageError, match="ipc 200 is larger than class 0") as caught:
        run(plan, tmp_path, executor=counting)
    assert caught.value.exit_code == 2
    assert counting.names == []
    assert not (plan.folder(tmp_path) / "record.json").exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("depth = 2", "depth = 5", "convnet of depth 5 needs images divisible by 32"),
        ("width = 4 }", "widht = 4 }", "network.options: unknown key 'widht'; did you mean 'wi"),
        ("split_seed = 0 }", "splitseed = 0 }", "track 'fast', data.options: "),
    ],
)
def test_a_track_that_does_not_fit_is_told_before_anything_is_computed(
    old, new, line, tmp_path
) -> None:
    track = tmp_path / "t.toml"
    assert old in TRACK.read_text()
    track.write_text(TRACK.read_text().replace(old, new))
    counting = Counting()
    with pytest.raises(UsageError, match=line):
        run(plan_of("random", track=str(track)), tmp_path, executor=counting)
    assert counting.names == []


def test_missing_data_are_told_before_anything_is_computed(tmp_path) -> None:
    counting = Counting()
    plan = folder_plan(tmp_path)
    with pytest.raises(UsageError, match="needs one folder of images a class"):
        run(plan, tmp_path, executor=counting, data_root=tmp_path / "nowhere")
    assert counting.names == []
    assert not (plan.folder(tmp_path) / "record.json").exists()


def test_a_folder_that_cannot_be_made_is_a_wrong_call(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot make .*see --out"):
        run(plan_of("random"), tmp_path / "file")


# Executors.


def test_an_executor_that_leaves_cells_out_is_found_out(tmp_path) -> None:
    class Lazy(LocalExecutor):
        def submit(self, cell, job):
            if cell.name != "students/1":
                return super().submit(cell, job)
            done = Future()
            done.set_result(None)
            return done

    failure, reason = failed_run(plan_of("random"), tmp_path, executor=Lazy())
    assert "the executor left cells undone: students/1" in reason
    assert failure.stage == "students"


def test_an_executor_that_cannot_be_entered_fails_the_run_and_lets_its_folder_go(tmp_path) -> None:
    class Closed(LocalExecutor):
        def __enter__(self):
            raise ConnectionError("no cluster")

    failure, reason = failed_run(plan_of("random"), tmp_path, PluginError, executor=Closed())
    assert "executor 'Closed' failed: ConnectionError: no cluster" in reason
    assert failure.stage == "set-up"
    assert run(plan_of("random"), tmp_path).record.status == "complete"


def test_cells_are_found_by_name_and_say_what_they_read(tmp_path) -> None:
    context = RunContext(plan_of("mtt"), registry(), tmp_path, Path())
    names = [cell.name for stage in STAGES for cell in cells_of(context, stage)]
    assert names == cell_names("mtt")
    for name in names:
        assert cell_named(context, name).name == name
    assert [p.name for p in cell_named(context, "distill").inputs] == [
        f"expert-{k}.safetensors" for k in range(2)
    ]
    outputs = [cell.output for stage in STAGES for cell in cells_of(context, stage)]
    inputs = {i for stage in STAGES for c in cells_of(context, stage) for i in c.inputs}
    assert len(set(outputs)) == len(outputs)
    assert inputs <= set(outputs)
    with pytest.raises(UsageError, match="has no cell 'students/2'"):
        cell_named(context, "students/2")
    with pytest.raises(UsageError, match="has no cell 'nothing'"):
        cell_named(context, "nothing")


def test_the_plan_of_a_run_lies_beside_its_record() -> None:
    folder = example("random").folder
    content = json.loads((folder / "plan.json").read_text())
    assert content["plan"] == plan_of("random").to_dict()
    assert record_json(folder)["costs"]["started"][:16] == content["started"][:16]
