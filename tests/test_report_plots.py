"""What a report draws of values over steps: reading, thinning, axes, lines and gaps."""

from __future__ import annotations

import math
from array import array

import pytest

from robustdd_bench.report.charts import metric_charts, number_label, round_values
from robustdd_bench.report.html import svg
from robustdd_bench.report.series import MAX_SERIES, Series, read_metrics, thinned


def series(values, *, stage="distill/matching", name="loss"):
    steps = array("d", range(1, len(values) + 1))
    return Series(stage, name, steps, array("d", values))


# Values.


def test_a_metrics_file_is_read_by_stage_and_name(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "stage": "a/b", "loss": 0.5, "alpha": 1}\n'
        '{"step": 2, "stage": "a/b", "loss": null, "alpha": NaN}\n'
    )
    found = read_metrics(path)
    assert [(s.head, s.place, s.name, list(s.steps)) for s in found.series] == [
        ("a", "b", "loss", [1, 2]),
        ("a", "b", "alpha", [1, 2]),
    ]
    assert [math.isnan(s.values[1]) for s in found.series] == [True, True]
    assert found.remarks == ()
    assert read_metrics(tmp_path / "none.jsonl").series == ()


def test_damaged_lines_are_counted_and_the_rest_is_read(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    sound = b'{"step": 3, "stage": "s", "loss": 1.5}\n'
    bad = [
        b'{"step": 1, "stage": "s", "lo',
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'"text"\n',
        b'{"step": 1e400, "stage": "s", "loss": 1}\n',
        b'{"step": 1, "stage": 7, "loss": 1}\n',
        b'{"step": 1, "stage": "s", "loss": "x"}\n',
        b'{"step": 1, "stage": "s", "loss": ' + b"1" * 5000 + b"}\n",
        b"[" * 60_000 + b"\n",
        b'{"step": 1, "stage": "s", "loss": 1' + b" " * 200_000 + b"}\n",
        b"null\n",
    ]
    path.write_bytes(bad[0] + b"\n" + sound.join(bad[1:]))
    found = read_metrics(path)
    assert found.remarks == (f"metrics.jsonl: {len(bad)} lines are damaged and left out",)
    assert list(found.series[0].values) == [1.5] * (len(bad) - 2)


def test_endless_names_are_bounded_and_a_folder_is_no_file(tmp_path) -> None:
    lines = (f'{{"step": 1, "stage": "s", "m{i}": 1}}\n' for i in range(MAX_SERIES + 9))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert len(found.series) == MAX_SERIES
    assert "more than 400 series" in found.remarks[0]
    assert "cannot be read" in read_metrics(tmp_path).remarks[0]


def test_a_long_series_is_thinned_and_keeps_extremes_gaps_and_ends() -> None:
    values = [math.sin(i / 50) for i in range(100_000)]
    values[54_321], values[7_777], values[33_333] = 40.0, -40.0, math.nan
    points = thinned(series(values), 400)
    assert len(points) <= 402
    assert [step for step, _ in points] == sorted(step for step, _ in points)
    assert (54_322, 40.0) in points
    assert (7_778, -40.0) in points
    assert any(step == 33_334 and math.isnan(value) for step, value in points)
    assert [points[0][0], points[-1][0]] == [1, 100_000]
    short = series(values[:400])
    assert thinned(short, 400) == list(zip(short.steps, short.values, strict=True))
    assert thinned(series([math.nan] * 5000), 400)


# Plots.


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([1.0, 50.0], False),
        ([0.1, 50.0], True),
        ([1e-300, 1e300], True),
        ([0.0, 50.0, 0.001], False),
        ([-1.0, 5000.0], False),
        ([-1e308, 1e308], False),
        ([3.0, 3.0], False),
        ([0.0], False),
        ([1e16, 1e16 + 2], False),
        ([5e-324, 1e-320], True),
        ([math.nan, math.nan], False),
    ],
)
def test_every_value_lies_in_the_plot_and_the_axis_suits_it(values, logarithmic) -> None:
    (chart,) = metric_charts([series(values)])
    assert ("logarithmic axis" in chart.notes) == logarithmic
    places = [point for line in chart.lines for point in line.points]
    assert len(places) == sum(not math.isnan(value) for value in values)
    for x, y in places:
        assert chart.left <= x <= chart.right
        assert chart.top <= y <= chart.bottom
    for tick in chart.y_ticks:
        assert chart.top - 1 <= tick.at <= chart.bottom + 1
        assert len(tick.text) <= 9
    assert len(chart.y_ticks) <= 13
    order = [value for value in values if not math.isnan(value)]
    heights = [-y for _, y in places]
    assert all(
        (a < b) <= (heights[i] <= heights[j])
        for i, a in enumerate(order)
        for j, b in enumerate(order)
    )


def test_a_line_is_broken_where_a_value_is_missing() -> None:
    (chart,) = metric_charts([series([1.0, 2.0, math.nan, 3.0, math.nan, math.nan])])
    assert [len(piece) for piece in chart.lines[0].pieces] == [2, 1]
    assert "3 values not finite: gaps" in chart.notes
    many = [float(i) for i in range(50)]
    many[25] = math.nan
    many[27] = math.nan
    (chart,) = metric_charts([series(many)])
    assert [len(piece) for piece in chart.lines[0].pieces] == [25, 1, 22]
    assert svg(chart).count('class="dot"') == 1


def test_experts_share_a_plot_and_students_are_points() -> None:
    experts = [series([2.0, 1.0], stage=f"experts/expert {k}") for k in range(100)]
    students = series([0.5, 0.6, 0.7], stage="students", name="clean")
    some, many, points = (metric_charts(found)[0] for found in (experts[:3], experts, [students]))
    assert [line.label for line in some.legend] == ["expert 0", "expert 1", "expert 2"]
    assert (len(many.lines), many.legend) == (40, ())
    assert "the first 40 of 100" in many.notes
    assert [len(piece) for piece in points.lines[0].pieces] == [1, 1, 1]
    assert points.x_name == "student"


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(0, 10, [0, 2, 4, 6, 8, 10]), (0.13, 0.41, [0.15, 0.2, 0.25, 0.3])]
)
def test_ticks_are_round_numbers(low, high, wanted) -> None:
    assert round_values(low, high, 6)[: len(wanted)] == pytest.approx(wanted)


def test_numbers_are_short() -> None:
    assert [number_label(v) for v in (0.0, 0.25, 1500.0, 2e-7, 3e12, 1e-300)] == [
        "0", "0.25", "1500", "2e-7", "3e12", "1e-300",
    ]  # fmt: skip
