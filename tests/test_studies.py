"""The tables in docs/studies are those of the figures committed beside them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from made_up import made_up, share
from small_runs import example, registry

from robustdd_bench.board.compare import compare_standings
from robustdd_bench.board.kept import differences, keep, kept_bits
from robustdd_bench.board.standings import standings
from robustdd_bench.errors import UsageError
from robustdd_bench.files import read_json, write_json
from robustdd_bench.protocol.networks import convnet
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.seeds import isolated_rng

ROOT = Path(__file__).resolve().parents[1]
STUDIES = {
    "mat-digits": "study_mat_digits",
    "attacks-digits": "study_attacks",
    "expert-precision": "study_sweep",
    "cifar10-controls": "study_controls",
    "mat-cifar10": "study_sweep",
    "normalised-pixels": "study_normalised",
    "tesla-gradient": "study_tesla_gradient",
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
    with pytest.raises(SystemExit, match="2"):
        module.main(["compare", folders[0], str(example("random").folder)])
    assert "the runs differ in evaluation sha256: they do not pair" in capsys.readouterr().err


def test_a_studys_file_holds_what_its_intervals_are_computed_from(runs, tmp_path, capsys) -> None:
    module, figures = script("study_sweep"), tmp_path / "study.json"
    module.main(["collect", str(figures), str(runs)])
    folders = [str(example(method, validate=True).folder) for method in ("mtt", "random")]
    module.main(["compare", *folders])
    from_folders = capsys.readouterr().out
    for method in ("mtt", "random"):
        shutil.rmtree(runs / method)
    ids = [row["run_id"] for row in read_json(figures)["runs"]]
    module.main(["compare", str(figures), *ids])
    assert capsys.readouterr().out == from_folders
    for row in read_json(figures)["runs"]:
        bits = kept_bits(row["outcomes"])
        assert bits.shape == (3, row["students"], row["examples"])
        assert bits.mean((1, 2)) == pytest.approx(row["accuracy"], abs=1e-6)
    assert len(json.dumps(read_json(figures))) < 6000
    with pytest.raises(SystemExit, match="2"):
        module.main(["compare", str(figures), ids[0], "0123456789ab"])
    assert "the outcomes of 0123456789ab were not kept" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        module.main(["compare", str(figures), ",".join(ids), ids[0]])
    assert "2 runs cannot be paired with 1" in capsys.readouterr().err


def test_outcomes_are_added_to_a_run_that_is_there_without_them(runs, tmp_path) -> None:
    module, figures = script("study_sweep"), tmp_path / "study.json"
    module.main(["collect", str(figures), str(runs)])
    whole = read_json(figures)
    bare = {"runs": [dict(row) for row in whole["runs"]], "comparisons": [], "about": "kept"}
    for row in bare["runs"]:
        del row["outcomes"]
        row["loss"] = 0.123  # what the file says of a run stays
    write_json(figures, bare)
    module.main(["collect", str(figures), str(runs)])
    found = read_json(figures)
    assert (found["about"], found["comparisons"]) == ("kept", [])
    for row, before in zip(found["runs"], whole["runs"], strict=True):
        assert row == before | {"loss": 0.123}


def test_a_repeat_on_another_machine_is_a_row_of_its_own(runs, tmp_path, capsys) -> None:
    module, figures = script("study_sweep"), tmp_path / "study.json"
    module.main(["collect", str(figures), str(runs)])
    once = read_json(figures)
    other = {"runs": [dict(row) for row in once["runs"]]}
    for row in other["runs"]:
        row |= {"results_sha256": "0" * 64, "device": "another machine"}
        del row["outcomes"]
    write_json(figures, other)
    with pytest.raises(SystemExit, match="--repeats keeps both"):
        module.main(["collect", str(figures), str(runs)])
    module.main(["collect", str(figures), str(runs), "--repeats"])
    rows = read_json(figures)["runs"]
    assert [row["method"] for row in rows] == ["mtt", "mtt", "random", "random"]
    assert sum("outcomes" in row for row in rows) == 2
    module.main(["compare", str(figures), rows[0]["run_id"], rows[2]["run_id"]])
    assert "| clean |" in capsys.readouterr().out


def test_a_comparison_is_computed_or_says_that_its_outcomes_were_not_kept(runs, tmp_path) -> None:
    module, study = script("study_sweep"), tmp_path / "study.md"
    figures = study.with_suffix(".json")
    module.main(["collect", str(figures), str(runs)])
    results = read_json(figures)
    mtt, random = (row["run_id"] for row in results["runs"])
    stated = {"0.10": [6.1, 2.6, 9.6]}
    results["comparisons"] = [
        {"what": "mtt less random", "a": mtt, "b": random, "stated": stated},
        {"what": "lost", "a": "0123456789ab", "b": random, "stated": stated},
    ]
    write_json(figures, results)
    study.write_text("<!-- begin tables --><!-- end tables -->")
    module.main(["draw", str(study)])
    text = study.read_text()
    assert text.count(f"| {module.COMPUTED} |") == 3
    assert f"| lost | 0.10 | +6.1 | +2.6 to +9.6 | {module.NOT_KEPT} |" in text
    for level, one in module.compared(results, mtt, random):
        shown = f"{100 * one.interval.low:+.1f} to {100 * one.interval.high:+.1f}"
        assert f"| {100 * one.difference:+.1f} | {shown} |" in text, level


def test_runs_of_several_seeds_are_compared_over_seeds() -> None:
    records = {
        m: [made_up(m, share(n), seed=s) for s in (0, 1, 2)] for m, n in (("a", 60), ("b", 30))
    }
    found = differences(*([keep(record) for record in side] for side in records.values()))
    rows = standings([record for side in records.values() for record in side])
    expected = compare_standings(*rows)
    assert [one for _, one in found] == list(expected.differences)
    assert [level for level, _ in found] == list(expected.levels)
    swapped = [keep(record) for record in reversed(records["b"])]
    with pytest.raises(UsageError, match="differ in seed"):
        differences([keep(record) for record in records["a"]], swapped)


def test_the_runs_of_a_sweep_that_a_study_lacks_are_told(tmp_path) -> None:
    module = script("study_sweep")
    sweep = ROOT / "examples" / "sweeps" / "mat-cifar10-slice.toml"
    study = ROOT / "docs" / "studies" / "mat-cifar10.json"
    every = module.missing(tmp_path / "none.json", sweep)
    lacking = module.missing(study, sweep)
    # Kept are random, MTT, and MAT at 1/255, at 2/255 and with natural experts: two were not run.
    assert (len(every), len(lacking)) == (7, 2)
    planned = {
        run.run_id: run.plan.config
        for run in module.plan_sweep(sweep, registry(), compile="auto").runs
    }
    assert [planned[run_id]["ema"] for run_id in lacking] == [0.9, 0.0]
    assert [round(255 * planned[run_id]["eps"]) for run_id in lacking] == [4, 2]


@pytest.fixture(scope="module")
def student():
    """A network behind a normalisation, images and labels."""
    layer = Preprocessing("normalise", (0.4,), (0.25,)).layer(torch.zeros(1, 1, 8, 8))
    with isolated_rng(0):
        body = convnet((1, 8, 8), 10, depth=2, width=4).eval()
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(layer, body)
    return network, images, network(images).argmax(1)


def test_an_image_clamped_as_published_loses_what_is_darker_than_the_mean(student) -> None:
    module = script("study_normalised")
    network, images, labels = student
    found = module.normalised_spaces(network, images, labels)
    brightened = network(images.clamp(min=0.4, max=0.65)).argmax(1) == labels
    assert torch.equal(found["published: no attack"], brightened)
    assert found["normalised: no attack"].all()


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_an_attack_of_the_published_protocol_stays_in_its_ball_and_does_harm(
    name, targeted, student
) -> None:
    module = script("study_normalised")
    (layer, body), images, labels = student
    z, aim = layer(images), (labels + 1) % 10 if targeted else labels

    def valid(x):
        return x.clamp(float(layer(torch.zeros(1))), float(layer(torch.ones(1))))

    moved = getattr(module, name)(body, z, aim, valid, targeted)
    delta = (moved - z).flatten(1)
    size = delta.norm(dim=1) if name == "pgd_l2" else delta.abs().amax(1)
    assert float(size.max()) <= (module.L2_EPS if name == "pgd_l2" else module.EPS) + 1e-5
    loss = torch.nn.functional.cross_entropy
    with torch.no_grad():
        change = float(loss(body(moved), aim) - loss(body(z), aim))
    assert change < -0.01 if targeted else change > 0.01
    pixels = moved * 0.25 + 0.4
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6


def test_where_nothing_is_normalised_both_spaces_are_one(student) -> None:
    module = script("study_normalised")
    (_, body), images, _ = student
    network = torch.nn.Sequential(torch.nn.Identity(), body)
    labels = body(images).argmax(1)
    found = module.normalised_spaces(network, images, labels)
    for name in module.ATTACKS:
        assert torch.equal(found[f"published: {name}"], found[f"normalised: {name}"])


def test_the_error_of_teslas_gradient_comes_out_again() -> None:
    module = script("study_tesla_gradient")
    known = {
        (row["place"], row["start"], row["alpha"], row["steps"]): row
        for row in read_json(module.RESULTS)["errors"]
    }
    rows = module.measure("digits", (0,), (1, 5), ROOT / "nowhere")
    assert len(rows) == 4
    for row in rows:
        committed = known[row["place"], row["start"], row["alpha"], row["steps"]]
        for name in ("cosine", "error", "ratio", "alpha_error"):
            assert row[name] == pytest.approx(committed[name], rel=0.01, abs=1e-9)


def test_a_study_with_a_rule_names_the_setting_that_it_chooses() -> None:
    module = script("study_sweep")
    accuracies = {"a": (0.90, 0.50), "b": (0.95, 0.20), "c": (0.94, 0.30)}
    shared = {"track": "t@1", "method": "m", "ladder": [0.1]}
    runs = [shared | {"run_id": k, "accuracy": [*v]} for k, v in accuracies.items()]
    results = {"rule": {"eps": 0.1, "clean_within": 0.02}, "runs": runs}
    ((row, count),) = module.chosen(results).values()
    assert (row["run_id"], count) == ("c", 3)
    text = module.choice_text(results)
    assert "| t@1 | m | 3 | 94.0 | 30.0 | `c` |" in text
    assert "the most robust setting at 0.10 of those at most 2 points below its best clean" in text
