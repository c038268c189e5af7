import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def speed_page():
    path = ROOT / "benchmarks" / "speed_page.py"
    spec = importlib.util.spec_from_file_location("speed_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_committed_results(speed_page):
    made = speed_page.with_measured(f"{speed_page.BEGIN}\nold\n{speed_page.END}\n")
    assert "old" not in made
    committed = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert speed_page.with_measured(committed) == committed
    for folder in ("results", "results/growth", "peers/results"):  # floors by their workload
        for path in (ROOT / "benchmarks" / folder).glob("*.json"):
            assert path.stem in committed


def test_a_loss_and_a_value_that_differs_are_bold(speed_page, monkeypatch):
    result = speed_page.peers()[0]
    slow = result.ours[0].model_copy(update={"times_as_fast_cpu": 0.5, "memory_ratio": 2.0})
    apart = [a.model_copy(update={"agrees": False}) for a in result.agreement]
    changed = result.model_copy(update={"ours": [slow], "agreement": apart})
    monkeypatch.setattr(speed_page, "peers", lambda: [changed])
    made = speed_page.with_measured(f"{speed_page.BEGIN}{speed_page.END}")
    assert "| **0.50 times as fast** | **2.00 of it** | **no** |" in made


def test_every_floor_is_on_the_page_and_follows_from_its_measurements(speed_page):
    committed = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    found = speed_page.floors()
    assert {floor.name for floor in found} == {"engine-w64-b50", "engine-w128-b10"}
    for floor in found:
        assert floor.workload in committed
        assert {way.way for way in floor.ways} >= {"field", "engine", "compiled"}
    fields = found[0].model_dump()
    for way in ("times_as_fast", "share"):
        bent = dict(fields, ways=[dict(each) for each in fields["ways"]])
        bent["ways"][1][way] = 9.0
        with pytest.raises(ValueError, match=f"{way} does not follow"):
            type(found[0]).model_validate(bent)


def test_a_page_without_its_marks_is_refused(speed_page):
    with pytest.raises(ValueError, match="lacks the marks"):
        speed_page.with_measured("# Speed\n")
