"""The tables in docs/studies are those of the figures committed beside them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from small_runs import example

from robustdd_bench.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
STUDIES = {
    "mat-digits": "study_mat_digits",
    "attacks-digits": "study_attacks",
    "expert-precision": "study_sweep",
    "mat-cifar10": "study_sweep",
}


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


@pytest.fixture
def runs(tmp_path):
    """Validation runs of two methods, in a folder."""
    for method in ("mtt", "random"):
        shutil.copytree(example(method, validate=True).folder, tmp_path / "runs" / method)
    return tmp_path / "runs"


def test_a_sweep_is_collected_and_drawn(runs, tmp_path) -> None:
    module, study = script("study_sweep"), tmp_path / "study.md"
    figures = study.with_suffix(".json")
    assert module.main(["collect", str(figures), str(runs)]) == 0
    mtt, random = read_json(figures)["runs"]
    assert (mtt["method"], random["method"]) == ("mtt", "random")
    record = example("mtt", validate=True).record
    assert mtt["accuracy"][0] == pytest.approx(record.aggregates.clean.mean, abs=1e-6)
    assert mtt["loss"] > 0
    assert random["loss"] is None
    study.write_text("# Title\n\n<!-- begin tables -->old<!-- end tables -->\nEnd\n")
    assert module.main(["draw", str(study)]) == 0
    text = study.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("<!-- end tables -->\nEnd\n")
    assert f"`{mtt['run_id']}`" in text
    assert f"{100 * mtt['accuracy'][0]:.1f} ± " in text
    assert "old" not in text


def test_a_study_grows_and_keeps_what_it_has(runs, tmp_path) -> None:
    module, figures = script("study_sweep"), tmp_path / "study.json"
    for folder in (runs / "mtt", runs / "random", runs):
        module.main(["collect", str(figures), str(folder)])
    assert len(read_json(figures)["runs"]) == 2
    changed = read_json(figures)
    changed["runs"][0]["results_sha256"] = "0" * 64
    write_json(figures, changed)
    with pytest.raises(SystemExit, match="has other figures"):
        module.main(["collect", str(figures), str(runs)])


def test_a_study_has_not_seen_the_test_split(tmp_path) -> None:
    module = script("study_sweep")
    with pytest.raises(SystemExit, match="not run with --validate"):
        module.main(["collect", str(tmp_path / "s.json"), str(example("random").folder)])
    with pytest.raises(SystemExit, match=r"no record\.json"):
        module.main(["collect", str(tmp_path / "s.json"), str(tmp_path)])


def test_two_runs_are_compared_in_pairs(tmp_path, capsys) -> None:
    module = script("study_sweep")
    folders = [str(example(method, validate=True).folder) for method in ("mtt", "random")]
    assert module.main(["compare", *folders]) == 0
    rows = capsys.readouterr().out.splitlines()
    a, b = (example(m, validate=True).record.aggregates.clean.mean for m in ("mtt", "random"))
    assert rows[2].startswith(f"| clean | {100 * (a - b):+.1f} |")
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| clean", "| 0.05", "| 0.10"]
    assert module.main(["compare", folders[0], folders[0]]) == 0
    assert "| 0.10 | +0.0 | +0.0 to +0.0 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="cannot be paired"):
        module.main(["compare", folders[0], str(example("random").folder)])
