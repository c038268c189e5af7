"""How long a run will still take."""

from __future__ import annotations

import io
import re

import pytest
from streams import Clock

from robustdd_bench.executors import Cell
from robustdd_bench.runs.execution.graph import CellGraph
from robustdd_bench.runs.progress.displays import PlainReporter, RichReporter
from robustdd_bench.runs.progress.events import EventReporter
from robustdd_bench.runs.progress.remaining import PRIOR_S, Remaining
from robustdd_bench.runs.progress.reporter import NullReporter


class Bar:
    def __init__(self, cell, done, total, resumed=0):
        self.cell, self.done, self.total, self.resumed = cell, done, total, resumed


CELLS = {"distill": 600.0, "students/0": 100.0, "students/1": 100.0}


def test_at_first_it_is_what_the_cells_are_expected_to_take() -> None:
    assert Remaining(CELLS, Clock()).seconds([]) == 800.0


def test_what_the_cells_took_tells_the_rate() -> None:
    clock = Clock()
    left = Remaining(CELLS, clock)
    clock.now += 1200.0  # twice as long as expected
    left.finished("distill")
    assert left.seconds([]) == pytest.approx(200.0 * (1200 + PRIOR_S) / (600 + PRIOR_S))
    assert left.share([]) == pytest.approx(0.75)


def test_a_cell_that_is_under_way_counts_by_its_outermost_bar() -> None:
    clock = Clock()
    left = Remaining(CELLS, clock)
    clock.now += 300.0
    bars = [Bar("distill", 50, 100), Bar("distill", 1, 1), Bar("", 3, 4), Bar("gone", 1, 2)]
    assert left.share(bars) == pytest.approx(300 / 800)
    assert left.seconds(bars) == pytest.approx(500.0)


def test_what_was_done_before_a_resumed_cell_says_nothing_of_the_rate() -> None:
    clock = Clock()
    left = Remaining(CELLS, clock)
    clock.now += 60.0
    bars = [Bar("distill", 60, 100, resumed=50)]
    assert left.share(bars) == pytest.approx(360 / 800)
    assert left.seconds(bars) == pytest.approx(440.0)
    clock.now += 240.0
    left.finished("distill")
    assert left.seconds([]) == pytest.approx(200.0)


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert Remaining({}, Clock()).text([]) == ""
    text = Remaining({"a": 90.0}, Clock()).text([])
    assert re.fullmatch(r"about 90 s left, until \d\d:\d\d", text)
    done = Remaining({"a": 90.0}, Clock())
    done.finished("a")
    assert done.text([]) == "nearly done"
    days = Remaining({"a": 90000.0}, Clock()).text([])
    assert re.fullmatch(r"about 25 h 00 min left, until \w{3} \d\d \w{3} \d\d:\d\d", days)


def test_a_bar_that_begins_with_many_steps_is_resumed() -> None:
    run = NullReporter()
    with run.cell("distill", "distill"), run.progress("matching", 10) as bar:
        bar.advance(0)
        bar.advance(4)
        bar.advance()
        assert (bar.done, bar.resumed, bar.cell) == (5, 4, "distill")


def test_a_cell_of_another_process_tells_what_it_resumed() -> None:
    events = []
    sender, run = EventReporter(events.append), NullReporter()
    with sender.cell("distill", "distill"), sender.progress("matching", 9) as bar:
        bar.advance(4)
        for _ in range(3):
            bar.advance()
        bar._advanced()
        for event in events:
            run.take("distill", event)
        found = run._bars[0]
        assert (found.done, found.resumed, found.cell) == (7, 4, "distill")


def test_steps_that_come_together_are_not_taken_for_resumed_ones() -> None:
    events = []
    sender, run = EventReporter(events.append), NullReporter()
    with sender.cell("distill", "distill"), sender.progress("matching", 9) as bar:
        for _ in range(3):
            bar.advance()
        bar._advanced()
        for event in events:
            run.take("distill", event)
        assert (run._bars[0].done, run._bars[0].resumed) == (3, 0)


def cells(tmp_path):
    first = Cell(stage="distill", name="distill", output=tmp_path / "set")
    students = [
        Cell(
            stage="students",
            name=f"students/{i}",
            output=tmp_path / f"s{i}",
            inputs=(first.output,),
            students=(i,),
        )
        for i in range(2)
    ]
    return [first, *students]


def graph_of(tmp_path, progress, asked):
    def times():
        asked.append(1)
        return {("distill", None): 60.0, ("students", None): 20.0}

    return CellGraph(cells(tmp_path), progress, times)


def test_lines_in_a_pipe_tell_when_a_run_ends_that_takes_longer(tmp_path) -> None:
    stream, clock, asked = io.StringIO(), Clock(), []
    run = PlainReporter(stream, clock=clock)
    graph = graph_of(tmp_path, run, asked)
    distill, *students = graph.cells
    graph.ready()
    graph.begins(distill)
    assert not asked, "a short run does not pay for it"
    with run.cell("distill", "distill"), run.progress("matching", 4) as bar:
        clock.now += 90.0
        bar.advance()
    assert "left" not in stream.getvalue()
    graph.finished(distill)
    graph.ready()
    graph.begins(students[0])
    assert asked == [1]
    with run.cell("students", "students/0"), run.progress("student 0", 2) as bar:
        clock.now += 10.0
        bar.advance()
    last = stream.getvalue().splitlines()[-2]
    assert re.fullmatch(
        r"student 0: 1/2 \(50 %\), 10.0 s; the run: about 30 s left, until \d\d:\d\d", last
    )
    graph.begins(students[1])
    assert asked == [1]


def test_a_terminal_has_a_line_for_the_run_and_a_stage_moves_with_its_cell(tmp_path) -> None:
    stream, clock, asked = io.StringIO(), Clock(), []
    run = RichReporter(stream, clock=clock)
    graph = graph_of(tmp_path, run, asked)
    distill = graph.cells[0]
    graph.ready()
    graph.begins(distill)
    assert asked == [1]
    with run.cell("distill", "distill"), run.progress("matching", 4) as bar:
        clock.now += 30.0
        bar.advance()
        bar.advance()
        run.draw(run._bars[1])
        tasks = {task.description.strip(): task for task in run._display.tasks}
        assert tasks["distill"].completed == pytest.approx(0.5)
        assert tasks["whole run"].completed == pytest.approx(0.3)
        assert tasks["whole run"].fields["left"].startswith("about 70 s left, until ")
        assert next(iter(tasks)) == "whole run"
        run._display.refresh()
    assert re.search(r"whole run +\S+ +30 % 0:00:30 about 70 s left", unescaped(stream))
    graph.finished(distill)
    graph.close(None)
    assert run._display is None


def unescaped(stream) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())


def test_a_run_that_cannot_be_counted_has_no_such_line(tmp_path) -> None:
    stream = io.StringIO()
    run = RichReporter(stream)
    graph = CellGraph(cells(tmp_path), run)
    graph.ready()
    graph.begins(graph.cells[0])
    run._display.refresh()
    graph.close(None)
    assert "whole run" not in stream.getvalue()
