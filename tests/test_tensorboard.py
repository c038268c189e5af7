"""The plugin `tensorboard`: off unless asked, its files what the run's own files say."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types

import pytest
import robustdd_tensorboard
import torch
from commands import press_ctrl_c
from robustdd_tensorboard.logger import VARIABLE, TensorBoardLogger, log_folder
from small_runs import example, plan_of, registry, run

from robustdd_bench.cli.main import main
from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.plugins import PluginWarning, get_plugin_manager, remarks
from robustdd_bench.runs.progress.displays import NullReporter
from robustdd_bench.runs.progress.loggers import plugin_loggers

RUN = {
    "event": "run",
    "folder": "somewhere",
    "run_id": "abc",
    "method": "mat",
    "track": "fast",
    "config": {"iterations": 3},
    "command": "robustdd run --method mat",
}


class Writer:
    """The stand-in for a SummaryWriter; remembers its calls."""

    made: list[Writer] = []  # noqa: RUF012

    def __init__(self, folder, flush_secs):
        self.folder, self.calls, self.closed, self.flushed = folder, [], 0, 0
        Writer.made.append(self)

    def add_scalar(self, tag, value, step):
        self.calls.append(("scalar", tag, value, step))

    def add_image(self, tag, picture, step):
        self.calls.append(("image", tag, tuple(picture.shape), step))

    def add_text(self, tag, text, step):
        self.calls.append(("text", tag, text, step))

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed += 1


@pytest.fixture
def fake(monkeypatch):
    """TensorBoard as it would be installed, with a writer that remembers."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("robustdd_tensorboard.logger.installed", lambda: True)
    monkeypatch.setenv(VARIABLE, "1")
    Writer.made = []
    return Writer.made


def send(*events):
    logger = TensorBoardLogger()
    for event in events:
        logger.receive(event)


def test_each_kind_of_event_is_written_under_its_stage(fake, tmp_path) -> None:
    send(
        RUN | {"folder": str(tmp_path)},
        {"event": "stage", "stage": "distill", "status": "started"},
        {"event": "metrics", "stage": "distill/m", "step": 4, "values": {"loss": 0.5, "x": None}},
        {"event": "images", "stage": "distill/m", "step": 4, "picture": torch.zeros(3, 4, 5)},
        {"event": "note", "stage": "", "text": "# one\ntwo"},
        {"event": "stage", "stage": "distill", "status": "finished"},
        {"event": "something new"},
        {"event": "end", "status": "finished"},
    )
    (writer,) = fake
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.calls[:2] == [
        ("text", "run", "    robustdd run --method mat\n    iterations = 3", 0),
        ("scalar", "distill/m/loss", 0.5, 4),
    ]
    assert writer.calls[2][:2] == ("scalar", "distill/m/x")
    assert math.isnan(writer.calls[2][2])
    assert writer.calls[3:] == [
        ("image", "distill/m/images", (3, 4, 5), 4),
        ("text", "notes", "    # one\n    two", 1),
    ]
    assert (writer.flushed, writer.closed) == (1, 1)


@pytest.mark.parametrize("value", [None, "", "0", " "])
def test_nothing_is_written_unless_it_is_asked_for(value, fake, monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    send(RUN, {"event": "metrics", "stage": "s", "step": 1, "values": {"loss": 1.0}})
    assert fake == []


def test_a_folder_of_choice_has_a_place_for_each_run(fake, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert log_folder(RUN) == tmp_path / "fast" / "mat" / "abc"
    send(RUN, RUN | {"run_id": "def"}, {"event": "end", "status": "failed"})
    assert [writer.folder for writer in fake] == [
        str(tmp_path / "fast" / "mat" / name) for name in ("abc", "def")
    ]
    assert [writer.closed for writer in fake] == [1, 1]


def test_a_run_without_a_folder_is_not_written(fake) -> None:
    send(RUN | {"folder": None}, {"event": "end", "status": "finished"})
    assert fake == []


def test_who_asks_without_having_tensorboard_is_told_and_the_run_goes_on(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr("robustdd_tensorboard.logger.installed", lambda: False)
    manager = get_plugin_manager([("tb", robustdd_tensorboard)], entry_points=False)
    publish = plugin_loggers(manager)
    with pytest.warns(PluginWarning, match=r"tensorboard is not installed; pip install"):
        publish(event=RUN | {"folder": str(tmp_path)})
    publish(event={"event": "end", "status": "finished"})


@pytest.mark.parametrize(
    ("there", "value", "said"),
    [
        (False, "1", "inactive: tensorboard is not installed"),
        (True, "", "off; ROBUSTDD_TENSORBOARD=1"),
        (True, "logs", "on: ROBUSTDD_TENSORBOARD=logs"),
    ],
)
def test_plugins_and_doctor_say_whether_it_is_active(
    there, value, said, monkeypatch, capsys
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setattr("robustdd_tensorboard.logger.installed", lambda: there)
    assert main(["plugins", "--json"]) == 0
    (row,) = (
        row
        for row in json.loads(capsys.readouterr().out)["plugins"]
        if row["name"] == "tensorboard"
    )
    assert row["status"] == "loaded"
    assert row["remark"].startswith(said)
    assert main(["plugins"]) == 0
    assert said in capsys.readouterr().out
    main(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    (check,) = (check for check in checks if check["what"] == "plugin tensorboard")
    assert check["detail"].startswith(said)
    assert check["status"] == "ok"


def test_remarks_of_plugins_come_through_the_hook_robustdd_remark() -> None:
    class Plugin:
        def __init__(self, text):
            self.text = text

        @hookimpl
        def robustdd_remark(self):
            return 1 / 0 if self.text == "broken" else self.text

    texts = {"a": "two\nlines", "b": None, "c": "broken"}
    plugins = [(name, Plugin(text)) for name, text in texts.items()]
    assert remarks(get_plugin_manager(plugins, entry_points=False)) == {
        "a": "two lines",
        "c": "robustdd_remark failed: ZeroDivisionError: division by zero",
    }


def test_the_plugin_is_registered_and_imports_nothing_heavy() -> None:
    assert registry().plugins["tensorboard"].status == "loaded"
    script = (
        "import sys; from robustdd_bench.plugins import *; m = get_plugin_manager(); remarks(m)\n"
        "m.hook.robustdd_report(event={'event': 'run'})\n"
        "print([name for name in ('torch', 'tensorboard', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def logged(folder):
    """Scalars and images in the event files of a folder, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    tags = found.Tags()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    images = {tag: [e.step for e in found.Images(tag)] for tag in tags["images"]}
    return scalars, images


def test_the_real_files_hold_what_the_run_wrote_once_also_after_an_interruption(
    monkeypatch, tmp_path
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv(VARIABLE, "1")
    publish = plugin_loggers(get_plugin_manager())

    def reporter(folder):
        return NullReporter(folder, publish=publish)

    class Interrupting(NullReporter):
        def metrics(self, step, **values):
            super().metrics(step, **values)
            if "alpha" in values and step == 2:
                press_ctrl_c()

    plan = plan_of("mtt")
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path, reporter=lambda folder: Interrupting(folder, publish=publish))
    finished = run(plan, tmp_path, reporter=reporter)
    assert finished.record.results_sha256 == example("mtt").record.results_sha256
    folder = finished.folder / "tensorboard"
    assert len(list(folder.iterdir())) == 2, "a file for each start"
    scalars, images = logged(folder)
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in (finished.folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        stage, step = row.pop("stage"), row.pop("step")
        for name, value in row.items():
            expected.setdefault(f"{stage}/{name}".replace(" ", "_"), []).append(
                (step, pytest.approx(value, rel=1e-6))
            )
    # Older versions of torch write spaces as underscores.
    assert {tag.replace(" ", "_"): values for tag, values in scalars.items()} == expected
    assert images == {"distill/matching/images": [0, 1, 3]}
