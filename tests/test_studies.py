"""The tables in docs/studies are those of the figures committed beside them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from robustdd_bench.files import read_json

ROOT = Path(__file__).resolve().parents[1]
STUDIES = {"mat-digits": "study_mat_digits", "attacks-digits": "study_attacks"}


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its own module up while it is being made.
    import sys

    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("study", "name"), STUDIES.items())
def test_the_tables_of_a_study_are_those_of_its_figures(study, name) -> None:
    path = ROOT / "docs" / "studies" / f"{study}.md"
    results = read_json(path.with_suffix(".json"))
    text = path.read_text(encoding="utf-8")
    _, begin, rest = text.partition("<!-- begin tables -->")
    shown, end, _ = rest.partition("<!-- end tables -->")
    assert begin
    assert end
    assert shown.strip() == script(name).tables(results).strip()


def test_mats_study_has_every_run_that_its_script_names() -> None:
    module = script("study_mat_digits")
    results = read_json(module.RESULTS)
    found = [
        module.Setting(row["method"], row["seed"], row["ema"], row["eps"], row["flavour"])
        for row in results["runs"]
    ]
    assert found == list(module.settings())
    assert results["about"]["students"] == 5
    assert module.PLOT.is_file()
