"""Images over iterations: when they are shown, what is kept, and that they change nothing."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from PIL import Image
from small_runs import example, plan_of, run
from tasks import RecordingReporter

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.drawing.figures import png
from robustdd_bench.errors import RunFailedError
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.runs.progress.snapshots import snapshot_picture, snapshots, write_snapshot
from robustdd_bench.toolkit.snapshots import MOST, show_images, snapshot_steps
from robustdd_bench.toolkit.throughput import tell_work


class Heard:
    """Remembers events."""

    def __init__(self):
        self.events = []

    def __call__(self, event):
        self.events.append(event)

    def names(self):
        return [event["event"] for event in self.events]


class Showing(NullReporter):
    """Remembers the steps whose images it is shown."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def show_images(self, step, distilled):
        self.shown.append(step)


LOOPS = ("mtt", "mat", "dc", "dsa", "dm")


def some_set(classes=3, ipc=2, shape=(1, 8, 8), *, soft=False):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(ipc)
    images = torch.rand(len(labels), *shape, generator=generator)
    wanted = torch.nn.functional.one_hot(labels, classes).float() if soft else labels
    return DistilledSet(images=images, labels=wanted)


# When.


@pytest.mark.parametrize("total", [0, 1, 2, 11, 12, 300, 5000, 20000])
def test_first_and_last_step_are_shown_and_a_dozen_at_most(total) -> None:
    steps = snapshot_steps(total)
    assert {0, total} <= steps
    assert len(steps) <= MOST
    assert all(0 <= step <= total for step in steps)


def test_steps_lie_closer_in_the_beginning() -> None:
    steps = sorted(snapshot_steps(5000))
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert len(steps) == MOST
    assert gaps == sorted(gaps)
    assert gaps[-1] > 10 * gaps[0]


def test_the_set_is_made_for_steps_that_are_shown_and_no_other() -> None:
    made = []
    reporter = Showing()

    def current():
        made.append(1)
        assert not torch.is_grad_enabled()
        return some_set()

    for step in range(301):
        reporter.images(step, 300, current)
    assert reporter.shown == sorted(snapshot_steps(300))
    assert len(made) == len(reporter.shown)


def test_the_former_functions_tell_the_reporter_and_warn() -> None:
    reporter = RecordingReporter()
    with pytest.warns(DeprecationWarning, match=r"is now reporter.images\(\.\.\.\); version 0.3"):
        show_images(reporter, 10, 10, some_set)
    assert list(reporter.shown) == [10]
    with pytest.warns(DeprecationWarning, match=r"is now reporter.work\(\.\.\.\); version 0.3"):
        tell_work(reporter, 7, "images")
    assert reporter.worked == {"images": 7}


# What is kept.


@pytest.mark.parametrize("method", LOOPS)
def test_every_shared_loop_leaves_snapshots_of_which_the_last_is_the_set(method) -> None:
    folder = example(method).folder
    found = snapshots(folder)
    assert [snapshot.step for snapshot in found] == [0, 1, 3]
    assert len({snapshot.path.read_bytes() for snapshot in found}) > 1
    made = DistilledSet.load(folder / "distilled.safetensors")
    assert found[-1].path.read_bytes() == png(snapshot_picture(made))


@pytest.mark.parametrize("method", ["mat", "dm"])
def test_a_run_that_shows_no_images_makes_the_same_set(method, tmp_path) -> None:
    class Blind(NullReporter):
        def show_images(self, step, distilled):
            return

    finished = run(plan_of(method), tmp_path, reporter=Blind)
    assert snapshots(finished.folder) == []
    assert finished.record.results_sha256 == example(method).record.results_sha256


@pytest.mark.parametrize(
    ("classes", "ipc", "shape", "rows", "columns"),
    [
        (10, 1, (1, 8, 8), 10, 1),
        (100, 50, (3, 32, 32), 20, 10),
        (200, 10, (3, 64, 64), 20, 3),
        (3, 2, (3, 200, 600), 2, 1),
    ],
)
def test_a_snapshot_is_small_however_many_images_there_are(
    classes, ipc, shape, rows, columns
) -> None:
    picture = snapshot_picture(some_set(classes, ipc, shape))
    side = max(1, -(-32 // shape[-1]))
    assert picture.shape == (
        3,
        rows * (shape[1] * side + 2) + 2,
        columns * (shape[2] * side + 2) + 2,
    )
    content = png(picture)
    assert len(content) < 2**20
    with Image.open(io.BytesIO(content)) as image:
        image.load()


def test_soft_labels_and_values_that_are_not_finite_make_a_picture() -> None:
    distilled = some_set(soft=True)
    assert torch.equal(snapshot_picture(distilled), snapshot_picture(some_set()))
    distilled.images[0] = float("nan")
    distilled.images[1] = float("inf")
    picture = snapshot_picture(distilled)
    assert picture[0, 10, 10] == 128
    assert picture[0, 10, 44] == 255


def test_what_is_there_is_not_written_again_and_other_files_are_left_out(tmp_path) -> None:
    picture = snapshot_picture(some_set())
    assert write_snapshot(tmp_path, 12, picture)
    assert not write_snapshot(tmp_path, 12, picture)
    assert write_snapshot(tmp_path, 12, picture.flip(1))
    write_snapshot(tmp_path, 2, picture)
    folder = tmp_path / "snapshots"
    (folder / "notes.txt").write_text("x")
    (folder / "00000005.png").symlink_to(folder / "00000002.png")
    assert [snapshot.step for snapshot in snapshots(tmp_path)] == [2, 12]
    assert snapshots(tmp_path / "nowhere") == []


def test_each_picture_is_an_event_once_with_its_stage(tmp_path) -> None:
    heard = Heard()
    for distilled in (some_set(), some_set(), some_set(ipc=1)):
        reporter = NullReporter(tmp_path, publish=heard)
        with reporter, reporter.stage("distill", 1), reporter.progress("matching", 3):
            reporter.show_images(2, distilled)
    shown = [event for event in heard.events if event["event"] == "images"]
    assert [(event["stage"], event["step"]) for event in shown] == [("distill/matching", 2)] * 2
    assert torch.equal(shown[0]["picture"], snapshot_picture(some_set()))


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path) -> None:
    (tmp_path / "snapshots").write_text("in the way")
    with NullReporter(tmp_path) as reporter, pytest.raises(RunFailedError, match="cannot write"):
        reporter.show_images(0, some_set())


# What loggers are told of a run.


def test_a_run_begins_with_its_folder_and_ends_after_its_last_value(tmp_path) -> None:
    heard = Heard()
    reporter = NullReporter(tmp_path, publish=heard)
    with reporter, reporter.run(run_id="abc"):
        reporter.metrics(1, loss=0.5)
    first, _, last = heard.events
    assert heard.names() == ["run", "metrics", "end"]
    assert (first["folder"], first["run_id"]) == (str(tmp_path), "abc")
    assert last["status"] == "finished"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")]
)
def test_a_run_that_breaks_off_ends_with_its_status_and_its_values(error, status, tmp_path) -> None:
    heard = Heard()
    reporter = NullReporter(tmp_path, publish=heard)

    def body():
        reporter.metrics(1, loss=0.5)
        raise error

    with pytest.raises(error), reporter, reporter.run():
        body()
    assert heard.names() == ["run", "metrics", "end"]
    assert heard.events[-1]["status"] == status


def test_the_pipeline_says_which_run_it_is(tmp_path) -> None:
    heard, plan = Heard(), plan_of("random")
    finished = run(plan, tmp_path, reporter=lambda folder: NullReporter(folder, publish=heard))
    first, last = heard.events[0], heard.events[-1]
    assert first == {
        "event": "run",
        "folder": str(finished.folder),
        "run_id": plan.run_id(),
        "method": "random",
        "track": "fast",
        "track_version": plan.track.version,
        "seed": 0,
        "split": "test",
        "config": dict(plan.config),
        "command": plan.command(),
    }
    assert (last["event"], last["status"]) == ("end", "finished")
