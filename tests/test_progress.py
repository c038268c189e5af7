"""Reporters: what a run shows while it runs, and what it leaves in its folder."""

import io
import json
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import Clock, Terminal

from robustdd_bench.errors import RunFailedError, UsageError
from robustdd_bench.hookspecs import hookimpl
from robustdd_bench.plugins import PluginWarning, get_plugin_manager
from robustdd_bench.runs.progress.displays import (
    NullReporter,
    PlainReporter,
    RichReporter,
    make_reporter,
    plugin_loggers,
)
from robustdd_bench.runs.progress.metrics import MetricsFile, Row, read_values


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def reporter(folder: Path, **options: Any) -> NullReporter:
    return NullReporter(folder, **options)


# --- metrics ---------------------------------------------------------------------------------


def test_a_line_a_step_with_its_stage_in_the_order_they_came(tmp_path: Path) -> None:
    with reporter(tmp_path) as run:
        run.metrics(0, note=1)
        with run.stage("distill", 1, 0), run.progress("matching", 10):
            run.metrics(1, loss=torch.tensor(0.5), alpha=0.25)
            with run.progress("inner", 2):
                run.metrics(2, loss=torch.tensor([[2]]))
        with run.stage("students", 1, 0):
            run.metrics(1, loss=3.0)
    assert rows(tmp_path) == [
        {"step": 0, "stage": "", "note": 1.0},
        {"step": 1, "stage": "distill/matching", "loss": 0.5, "alpha": 0.25},
        {"step": 2, "stage": "distill/matching", "loss": 2.0},
        {"step": 1, "stage": "students", "loss": 3.0},
    ]


def test_values_that_are_not_finite_become_null(tmp_path: Path) -> None:
    nan, infinity = float("nan"), float("inf")
    with reporter(tmp_path) as run:
        run.metrics(1, a=nan, b=torch.tensor(infinity), c=torch.tensor(-infinity), d=1e300)
    assert rows(tmp_path) == [{"step": 1, "stage": "", "a": None, "b": None, "c": None, "d": 1e300}]


def test_a_tensor_that_is_overwritten_later_keeps_its_value_of_that_step(tmp_path: Path) -> None:
    loss = torch.tensor(1.0)
    with reporter(tmp_path) as run:
        for step in range(3):
            loss.fill_(step)  # as a captured step does
            run.metrics(step, loss=loss)
    assert [row["loss"] for row in rows(tmp_path)] == [0.0, 1.0, 2.0]


def test_tensors_are_read_together_every_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[int] = []

    def counted(found: list[Row]) -> list[dict[str, float | None]]:
        readings.append(len(found))
        return read_values(found)

    monkeypatch.setattr("robustdd_bench.runs.progress.reporter.read_values", counted)
    clock = Clock()
    with reporter(tmp_path, clock=clock, flush_s=3.0) as run:
        for step in range(10):
            run.metrics(step, loss=torch.tensor(float(step)))
            clock.now += 0.5
        assert readings == [7], "the values of three seconds in one reading"
        assert len(rows(tmp_path)) == 7
    assert readings == [7, 3]


def test_reading_in_batches_gives_what_reading_one_by_one_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=generator, dtype=torch.float64)
    batch = [Row("s", i, {"a": v, "b": v.float(), "c": i / 3}) for i, v in enumerate(values)]
    assert read_values(batch) == [
        {"a": float(v), "b": float(v.float()), "c": i / 3} for i, v in enumerate(values)
    ]


@pytest.mark.parametrize("values", [{"loss": torch.zeros(2)}, {"stage": 1.0}])
def test_a_value_that_is_no_number_or_has_a_name_of_the_file_is_refused(
    values: dict[str, Any], tmp_path: Path
) -> None:
    with reporter(tmp_path) as run, pytest.raises(ValueError, match="metric"):
        run.metrics(1, **values)


def test_a_resumed_run_appends_without_repeating_steps(tmp_path: Path) -> None:
    def part(first: int, last: int) -> None:
        with reporter(tmp_path) as run, run.stage("distill", 1, 0):
            for step in range(first, last):
                run.metrics(step, loss=float(step))
                run.metrics(step, norm=2.0 * step)

    part(0, 5)
    part(3, 8)  # the checkpoint was older than the last line
    found = rows(tmp_path)
    assert [row["step"] for row in found if "loss" in row] == list(range(8))
    assert [row["step"] for row in found if "norm" in row] == list(range(8))


def test_a_step_of_which_only_a_part_was_written_is_completed(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "stage": "", "loss": 1.0}\n')
    with reporter(tmp_path) as run:
        run.metrics(4, loss=1.0)
        run.metrics(4, norm=2.0)
    assert rows(tmp_path) == [
        {"step": 4, "stage": "", "loss": 1.0},
        {"step": 4, "stage": "", "norm": 2.0},
    ]


def test_other_stages_do_not_hide_the_steps_of_a_new_one(tmp_path: Path) -> None:
    for expert in range(2):
        title = f"expert {expert}"
        with reporter(tmp_path) as run, run.stage("experts", 2), run.progress(title, 3):
            for epoch in range(3):
                run.metrics(epoch, loss=1.0)
    assert [(row["stage"], row["step"]) for row in rows(tmp_path)] == [
        (f"experts/expert {expert}", epoch) for expert in range(2) for epoch in range(3)
    ]


@pytest.mark.parametrize(
    "tail", [b'{"step": 2, "sta', b"\x00\x00\x00\n", b'{"step": 2}\n', b"[]\n"]
)
def test_a_damaged_last_line_is_removed(tail: bytes, tmp_path: Path) -> None:
    good = b'{"step": 1, "stage": "", "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + tail)
    with reporter(tmp_path) as run:
        run.metrics(2, loss=2.0)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_file_that_cannot_be_written_ends_the_run_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunFailedError, match="cannot open"):
        reporter(tmp_path)
    file = MetricsFile(tmp_path / "other.jsonl")
    (tmp_path / "other.jsonl").mkdir()
    with pytest.raises(RunFailedError, match="cannot write"):
        file.append([{"step": 1}])


def test_what_is_buffered_is_written_when_the_run_is_interrupted(tmp_path: Path) -> None:
    def interrupted() -> None:
        with reporter(tmp_path) as run, run.stage("distill", 1, 0), run.progress("matching", 9):
            run.metrics(1, loss=torch.tensor(1.0))
            raise KeyboardInterrupt("kept: nothing")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [row["step"] for row in rows(tmp_path)] == [1]
    log = (tmp_path / "run.log").read_text()
    assert "distill: interrupted after" in log
    assert "KeyboardInterrupt: kept: nothing" in log
    assert "Traceback" not in log


# --- the log ---------------------------------------------------------------------------------


def test_notes_and_stages_go_to_the_log_with_their_time(tmp_path: Path) -> None:
    with reporter(tmp_path) as run, run.stage("distill", 3, 1):
        run.note("a word")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", line) for line in lines)
    said = [line.split(" ", 1)[1] for line in lines]
    assert said[:2] == ["distill: 1 of 3 done", "a word"]
    assert said[2].startswith("distill: finished after ")


def test_the_trace_of_a_failure_is_in_the_log_and_that_of_a_wrong_call_is_not(
    tmp_path: Path,
) -> None:
    def fail(error: Exception) -> None:
        with reporter(tmp_path):
            raise error

    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError("oops"))
    log = (tmp_path / "run.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert log.endswith("ZeroDivisionError: oops\n")
    with pytest.raises(UsageError):
        fail(UsageError("no such folder"))
    assert (tmp_path / "run.log").read_text().endswith("UsageError: no such folder\n")
    assert (tmp_path / "run.log").read_text().count("Traceback") == 1


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with NullReporter() as run, run.stage("distill", 1, 0):
        run.metrics(1, loss=1.0)
        run.note("a word")
    assert list(tmp_path.iterdir()) == []


# --- events ----------------------------------------------------------------------------------


def plugin(function: Callable[..., None]) -> types.ModuleType:
    module = types.ModuleType("logger")
    function.__name__ = "robustdd_report"
    module.robustdd_report = hookimpl(function)  # type: ignore[attr-defined]
    return module


def test_plugins_receive_each_event_through_the_hook_robustdd_report(tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []

    def robustdd_report(event: Mapping[str, Any]) -> None:
        events.append(event)

    manager = get_plugin_manager([("logger", plugin(robustdd_report))], entry_points=False)
    run = reporter(tmp_path, publish=plugin_loggers(manager), clock=Clock())
    with run, run.stage("distill", 2, 1):
        run.metrics(3, loss=torch.tensor(0.5), bad=float("nan"))
        run.note("a word")
    assert events == [
        {"event": "stage", "stage": "distill", "status": "started", "total": 2, "done": 1},
        {"event": "note", "stage": "distill", "text": "a word"},
        {"event": "stage", "stage": "distill", "status": "finished", "wall_s": 0.0},
        {"event": "metrics", "stage": "distill", "step": 3, "values": {"loss": 0.5, "bad": None}},
    ]


def test_a_logger_that_raises_is_left_out_and_the_run_and_other_loggers_go_on() -> None:
    heard: list[str] = []

    def broken(event: Mapping[str, Any]) -> None:
        heard.append("broken")
        raise ConnectionError("no network")

    def sound(event: Mapping[str, Any]) -> None:
        heard.append("sound")

    extra = [("broken", plugin(broken)), ("sound", plugin(sound))]
    manager = get_plugin_manager(extra, entry_points=False)
    with NullReporter(publish=plugin_loggers(manager)) as run:
        with pytest.warns(PluginWarning, match=r"'broken': robustdd_report failed.*no network"):
            run.note("one")
        run.note("two")
    assert sorted(heard) == ["broken", "sound", "sound"]


# --- plain lines -----------------------------------------------------------------------------


def plain(clock: Clock) -> tuple[PlainReporter, io.StringIO]:
    stream = io.StringIO()
    return PlainReporter(stream, clock=clock), stream


def test_a_stage_has_a_line_at_its_start_and_one_with_its_duration_at_its_end() -> None:
    clock = Clock()
    run, stream = plain(clock)
    with run.stage("students", 5, 2) as step:
        clock.now += 1.5
        step()
    assert stream.getvalue() == "students: 2/5\nstudents: done, 1.5 s\n"


@pytest.mark.parametrize(
    ("step_s", "lines"),
    [
        (
            1 / 32,
            [
                "matching: 250/1000 (25 %), 7.8 s",
                "matching: 500/1000 (50 %), 15.6 s",
                "matching: 750/1000 (75 %), 23.4 s",
                "matching: done, 31.2 s",
            ],
        ),
        (
            1 / 64,
            [
                "matching: 320/1000 (32 %), 5.0 s",
                "matching: 640/1000 (64 %), 10.0 s",
                "matching: 960/1000 (96 %), 15.0 s",
                "matching: done, 15.6 s",
            ],
        ),
    ],
)
def test_lines_come_at_quarters_and_never_more_often_than_every_five_seconds(
    step_s: float, lines: list[str]
) -> None:
    clock = Clock()
    run, stream = plain(clock)
    with run.progress("matching", 1000) as bar:
        for _ in range(1000):
            clock.now += step_s
            bar.advance()
    assert stream.getvalue().splitlines() == ["matching: 0/1000", *lines]


def test_a_fast_stage_is_two_lines() -> None:
    run, stream = plain(Clock())
    with run.progress("matching", 1000) as bar:
        for _ in range(1000):
            bar.advance()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_slow_stage_says_every_minute_that_it_lives() -> None:
    clock = Clock()
    run, stream = plain(clock)
    with run.progress("matching", 100_000) as bar:
        for _ in range(300):
            clock.now += 1.0
            bar.advance()
    assert len(stream.getvalue().splitlines()) == 2 + 5


def test_nested_bars_are_silent_unless_they_take_long() -> None:
    clock = Clock()
    run, stream = plain(clock)
    with run.stage("experts", 2, 0):
        with run.progress("expert 0", 10):
            clock.now += 4.0
        with run.progress("expert 1", 10) as bar:
            clock.now += 6.0
            bar.advance(5)
            clock.now += 1.0
    assert stream.getvalue().splitlines() == [
        "experts: 0/2",
        "expert 1: 5/10 (50 %), 6.0 s",
        "expert 1: done, 7.0 s",
        "experts: done, 11.0 s",
    ]


def test_an_interrupted_stage_says_where_it_stopped() -> None:
    run, stream = plain(Clock())

    def interrupted() -> None:
        with run.progress("matching", 10) as bar:
            bar.advance(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().endswith("matching: stopped at 3/10, 0.0 s\n")


def test_notes_are_lines_and_titles_of_strangers_hold_no_escape_codes() -> None:
    run, stream = plain(Clock())
    run.note("two\nlines")
    with run.progress("red\x1b[31m", 1):
        pass
    assert stream.getvalue().startswith("two lines\nred [31m: 0/1\n")
    assert "\x1b" not in stream.getvalue()


def test_a_reader_of_the_lines_that_went_away_does_not_end_the_run(tmp_path: Path) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with PlainReporter(Broken(), tmp_path) as run, run.stage("distill", 1, 0):
        run.note("a word")
        run.metrics(1, loss=1.0)
    assert len(rows(tmp_path)) == 1


def test_a_stage_of_no_steps_is_shown() -> None:
    clock = Clock()
    run, stream = plain(clock)
    with run.progress("nothing", 0) as bar:
        clock.now += 70.0
        bar.advance()
    assert stream.getvalue().splitlines()[1] == "nothing: 1/0, 70.0 s"


# --- bars ------------------------------------------------------------------------------------


def rich(monkeypatch: pytest.MonkeyPatch, **env: str) -> tuple[RichReporter, Terminal]:
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color", "COLUMNS": "100"} | env).items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    return RichReporter(stream), stream


def test_bars_are_nested_and_the_outermost_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    run, stream = rich(monkeypatch)
    with run.stage("experts", 2, 0) as step:
        for index in range(2):
            with run.progress(f"expert {index}", 4) as bar:
                for _ in range(4):
                    bar.advance()
                run._display.refresh()  # the refreshing thread may not have had its turn
            step()
    shown = stream.getvalue()
    assert "  expert 0" in shown
    assert "  expert 1" in shown
    last = shown[shown.rindex("experts") :]
    assert "2/2" in last
    assert "expert 1" not in last
    assert run._display is None, "no thread is left that redraws"


def test_bars_have_colours_and_no_color_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*(3[0-7]|38;|9[0-7])[0-9;]*m")
    run, stream = rich(monkeypatch)
    with run.progress("matching", 2) as bar:
        bar.advance(2)
    assert colour.search(stream.getvalue())
    run, stream = rich(monkeypatch, NO_COLOR="1")
    with run.progress("matching", 2) as bar:
        bar.advance(2)
    assert "matching" in stream.getvalue()
    assert not colour.search(stream.getvalue())


def test_an_interrupt_leaves_the_terminal_with_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    run, stream = rich(monkeypatch)

    def interrupted() -> None:
        with run, run.stage("distill", 1, 0), run.progress("matching", 9) as bar:
            bar.advance(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    shown = stream.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "shown again after it was hidden"
    assert run._display is None


def test_stdout_is_left_alone_while_bars_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, stream = rich(monkeypatch)
    with run.progress("matching", 1):
        print("data")
    assert capsys.readouterr().out == "data\n"
    assert "data" not in stream.getvalue()


# --- the choice ------------------------------------------------------------------------------


def test_the_reporter_fits_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_reporter(stream=Terminal())) is RichReporter
    assert type(make_reporter(stream=io.StringIO())) is PlainReporter
    assert type(make_reporter(stream=Terminal(), quiet=True)) is NullReporter
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_reporter(stream=Terminal())) is PlainReporter


def test_progress_goes_to_stderr_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with make_reporter(tmp_path) as run, run.progress("matching", 1):
        run.metrics(1, loss=1.0)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("matching: 0/1\n")
    assert len(rows(tmp_path)) == 1
