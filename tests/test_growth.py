import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    sys.path.insert(0, str(FOLDER))
    try:
        import growth
        import growth_curves
        import growth_results

        yield growth, growth_curves, growth_results
    finally:
        sys.path.remove(str(FOLDER))


def committed():
    return {path.stem: path for path in (FOLDER / "results" / "growth").glob("*.json")}


def test_every_curve_has_a_committed_result_and_no_result_lacks_a_curve(modules):
    assert set(committed()) == set(modules[1].CURVES)


@pytest.mark.parametrize("path", committed().values(), ids=list(committed()))
def test_committed_curves_are_of_what_is_in_the_code(modules, path):
    found = modules[2].Growth.model_validate_json(path.read_text(encoding="utf-8"))
    curve = modules[1].CURVES[path.stem]
    for field in ("title", "quantity", "workload", "expected", "reason"):
        assert getattr(found, field) == getattr(curve, field)
    assert tuple(found.x) == curve.x
    assert found.command.startswith(f"python benchmarks/growth.py {path.stem}")


def test_the_slope_is_the_power_of_growth(modules):
    xs = [1, 2, 4, 8, 16]
    for power in (0.0, 1.0, 1.5, 2.0):
        assert modules[2].slope(xs, [3 * x**power for x in xs]) == pytest.approx(power)


def made_up(modules, power, overhead):
    """A curve of a committed one's x whose cost is `overhead` + x ** `power`."""
    text = json.loads(committed()["engine-steps"].read_text(encoding="utf-8"))
    ys = [overhead + x**power for x in text["x"]]
    slope, tail = (modules[2].slope(text["x"][-k:], ys[-k:]) for k in (len(ys), 3))
    return text | {
        "cpu_s": [[y] * text["n"] for y in ys],
        "slope": slope,
        "tail_slope": tail,
        "above": tail > text["expected"] + 0.15,
    }


def test_growth_above_the_expected_is_said_where_a_cost_that_stays_hides_it(modules):
    schema = modules[2].Growth
    assert not schema.model_validate(made_up(modules, 1.0, 0.0)).above
    hidden = schema.model_validate(made_up(modules, 2.0, 100.0))
    assert hidden.slope < 1
    assert hidden.above
    with pytest.raises(ValueError, match="`above` does not follow"):
        schema.model_validate(made_up(modules, 2.0, 0.0) | {"above": False})
    with pytest.raises(ValueError, match="tail_slope does not follow"):
        schema.model_validate(made_up(modules, 2.0, 0.0) | {"tail_slope": 1.0})


@pytest.mark.parametrize("name", ["engine-steps", "engine-classes", "dc-classes", "dm-classes"])
def test_the_work_of_a_curve_can_be_done(modules, name):
    curve = modules[1].CURVES[name]
    assert curve.prepare(curve.x[0])() is not None


def test_levels_are_spread_about_the_same_middle(modules):
    found = modules[1].many_levels(2)()
    eps = [outcome.threat.eps for outcome in found[0]]
    assert eps == pytest.approx([0.05, 0.15] * 3)
    # What is broken at one eps is not tried at a larger one by the attacks on survivors.
    tried = [int(outcome.tried.sum()) for outcome in found[0]]
    assert tried[3] < tried[2] <= tried[0]


def test_the_picture_shows_every_curve(modules, tmp_path):
    curves = modules[0].committed()
    assert {curve.name for curve in curves} == set(committed())
    modules[0].draw(curves, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 20_000
    assert (ROOT / "docs" / "images" / "growth.png").stat().st_size > 20_000
