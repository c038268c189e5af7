"""Files of sweeps: what they mean, and that every mistake in them is told at once."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import sweeps
from small_runs import TRACK, example, plan_of, registry
from sweeps import planned, write

from robustdd_bench.errors import UsageError
from robustdd_bench.sweeps import file as sweep_file
from robustdd_bench.sweeps.file import MAX_RUNS, SweepFileError, read_sweep_file
from robustdd_bench.sweeps.plan import plan_sweep

PAGE = Path(__file__).parents[1] / "docs" / "sweeps.md"


def rows(sweep):
    return [(run.plan.method, run.plan.seed, run.settings) for run in sweep.runs]


# --- what a file means -------------------------------------------------------------------------


def test_a_grid_is_the_product_of_methods_axes_tracks_and_seeds_in_the_order_of_the_file(tmp_path):
    axes = "[settings.mat]\neps = [0.1, 0.05]\nema = 0.5"
    text = f'methods = ["random", "mat"]\nseeds = [3, 1]\n{axes}'
    tracks = f'tracks = ["{TRACK}", "digits-ipc1"]\n'
    sweep = plan_sweep(write(tmp_path, text, tracks=tracks), registry(), device="cpu")
    assert [(r.plan.method, r.settings, r.plan.track.name, r.plan.seed) for r in sweep.runs] == [
        (method, settings, track, seed)
        for method, settings in [("random", ""), ("mat", "eps=0.1"), ("mat", "eps=0.05")]
        for track in ("fast", "digits-ipc1")
        for seed in (3, 1)
    ]
    assert {run.plan.config["ema"] for run in sweep.runs if run.plan.method == "mat"} == {0.5}


def test_a_run_of_a_sweep_is_the_run_that_the_command_line_would_make(tmp_path):
    sweep = planned(tmp_path, f'methods = "mtt"\nseeds = [4]\nvalidate = true\n{sweeps.MTT}')
    (run,) = sweep.runs
    assert sweep.split == "validation"
    assert run.run_id == plan_of("mtt", seed=4, validate=True).run_id()


def test_explicit_runs_come_after_the_grid_with_its_tracks_and_seeds_or_their_own(tmp_path):
    text = """methods = "random"
    seeds = [0, 1]
    [[runs]]
    method = "mat"
    set = { eps = 0.05, ema = 0.9 }
    [[runs]]
    method = "mat"
    seeds = [7]
    set = { eps = 0.1, ema = 0.5 }
    """
    assert rows(planned(tmp_path, text)) == [
        ("random", 0, ""),
        ("random", 1, ""),
        ("mat", 0, "ema=0.9, eps=0.05"),
        ("mat", 1, "ema=0.9, eps=0.05"),
        ("mat", 7, "ema=0.5, eps=0.1"),
    ]


def test_presets_are_an_axis(tmp_path):
    text = 'methods = "mat"\ntracks = "digits-ipc10"\n[presets]\nmat = ["default", "quick"]'
    sweep = plan_sweep(write(tmp_path, text, tracks=""), registry(), device="cpu")
    assert rows(sweep) == [("mat", 0, "preset default"), ("mat", 0, "preset quick")]
    assert sweep.runs[0].run_id != sweep.runs[1].run_id


def test_a_list_is_an_axis_in_settings_and_a_value_in_a_run(tmp_path):
    text = 'methods = "mtt"\n[settings.mtt]\niterations = [[1]]\n[[runs]]\nmethod = "mtt"\n'
    with pytest.raises(SweepFileError) as caught:
        planned(tmp_path, text + "set = { iterations = [1] }")
    wrong = "method 'mtt': iterations: Input should be a valid integer, not [1]"
    assert caught.value.problems == (f"settings.mtt: {wrong}",)


def test_plans_that_are_the_same_run_once(tmp_path):
    same = '[[runs]]\nmethod = "mat"\nset = { ema = 0.99 }'
    text = f'methods = ["mat", "mat"]\nseeds = [0, 0]\n{same}'
    assert rows(planned(tmp_path, text)) == [("mat", 0, "")]


@pytest.mark.parametrize(
    ("name", "file", "source"),
    [("own.toml", "own.toml", "own.toml"), ("a/run", "a/run/record.json", "record.json")],
)
def test_a_track_that_is_a_file_or_a_run_is_looked_for_beside_the_sweep(
    name, file, source, tmp_path, monkeypatch
):
    path = tmp_path / "sweeps" / file
    path.parent.mkdir(parents=True)
    shutil.copyfile(TRACK if name == file else example().folder / "record.json", path)
    write(tmp_path / "sweeps", 'methods = "random"', tracks=f'tracks = "{name}"\n')
    monkeypatch.chdir(tmp_path)
    sweep = plan_sweep(Path("sweeps", "sweep.toml"), registry(), device="cpu")
    assert [run.plan.track_source for run in sweep.runs] == [source]
    assert [run.plan.track for run in sweep.runs] == [plan_of().track]


def test_only_some_runs_are_chosen_by_patterns(tmp_path):
    text = 'methods = ["random", "raising", "mat"]\nseeds = [0, 1]'
    chosen = planned(tmp_path, text, only=["ra*/fast", "mat"])
    assert rows(chosen) == rows(planned(tmp_path, text))
    assert rows(planned(tmp_path, text, only=["mat/f*"])) == [("mat", 0, ""), ("mat", 1, "")]
    with pytest.raises(UsageError, match="--only 'mat/slow' fits no run of the sweep"):
        planned(tmp_path, text, only=["mat", "mat/slow"])


def test_a_run_is_chosen_by_its_id(tmp_path):
    text = 'methods = ["random", "mat"]\nseeds = [0, 1]'
    _, second, third, _ = planned(tmp_path, text).runs
    chosen = planned(tmp_path, text, only=[second.run_id, third.run_id[:6]])
    assert [run.run_id for run in chosen.runs] == [second.run_id, third.run_id]
    for pattern in (third.run_id[:5], "0123456789ab"):
        with pytest.raises(UsageError, match=f"--only '{pattern}' fits no run of the sweep"):
            planned(tmp_path, text, only=[pattern])


@pytest.mark.parametrize(
    ("source", "mat", "mtt"),
    [(sweep_file.__doc__, 18, 12), (PAGE.read_text(encoding="utf-8"), 14, 12)],
    ids=["module", "page"],
)
def test_the_files_that_the_documentation_shows_can_be_planned(source, mat, mtt, tmp_path):
    (shown,) = re.findall(r"^ *name = .*?(?=\n```|\n\nThe)", source, re.DOTALL | re.MULTILINE)
    sweep = plan_sweep(write(tmp_path, shown, tracks=""), registry(), device="cpu")
    assert (sweep.name, sweep.split) == ("eps-of-experts", "validation")
    methods = [run.plan.method for run in sweep.runs]
    assert [methods.count(name) for name in ("mat", "mtt")] == [mat, mtt]


# --- what is wrong with a file -----------------------------------------------------------------


def test_every_entry_that_cannot_be_planned_is_told_at_once_with_its_place(tmp_path):
    text = """methods = ["random", "mta", "mat"]
    [settings.random]
    depth = 1
    [settings.mat]
    eps = [0.1, "much"]
    [presets]
    mat = ["default", "qick"]
    [[runs]]
    method = "mat"
    tracks = ["nope.toml"]
    [[runs]]
    method = "mat"
    set = { ema = 2.0 }
    [[runs]]
    method = "mat"
    set = { ema = nan }
    """
    tracks = f'tracks = ["{TRACK}", "digit-ipc10"]\n'
    with pytest.raises(SweepFileError) as caught:
        plan_sweep(write(tmp_path, text, tracks=tracks), registry(), device="cpu")
    assert caught.value.exit_code == 2
    number = "Input should be a valid number, not 'much'"
    assert sorted(caught.value.problems) == sorted(
        [
            "tracks[1]: unknown track 'digit-ipc10'; did you mean 'digits-ipc10'?",
            "methods[1]: unknown method 'mta'; did you mean 'mtt'?",
            "settings.random: method 'random': unknown key 'depth'; it has no settings",
            f"settings.mat: method 'mat': eps: {number}",
            "presets.mat: unknown preset 'qick'; did you mean 'quick'?",
            f"runs[0].tracks[0]: no track file {tmp_path / 'nope.toml'}",
            "runs[1]: method 'mat': ema must be less than 1, not 2.0",
            "runs[2]: method 'mat': ema: NaN and infinity are not accepted",
        ]
    )


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["it names no run: give `methods`, or [[runs]]"]),
        ("method = 'mat'", ["unknown key 'method'; did you mean 'methods'?"]),
        ("methods = []", ["methods: the list is empty"]),
        ("methods = 'mat'\nseeds = []", ["seeds: the list is empty"]),
        ("methods = 'mat'\nseeds = 3", ["seeds: Input should be a valid tuple"]),
        (
            "methods = 'mat'\nseeds = [true, -1, 1.0, '0']",
            [
                "seeds[0]: Input should be a valid integer",
                "seeds[1] must be at least 0",
                "seeds[2]: Input should be a valid integer",
                "seeds[3]: Input should be a valid integer",
            ],
        ),
        (
            f"methods = 'mat'\nseeds = [{10**20}]",
            ["seeds[0] must be at most 9223372036854775807, not 1"],
        ),
        ("methods = 'mat'\nname = '../x'", ["name: the name holds a slash or a character that"]),
        ('methods = "mat"\nname = "a\\u001bb"', ["name: the name holds a slash or a character"]),
        ("methods = 'mat'\nvalidate = 1", ["validate: Input should be a valid boolean"]),
        (
            "methods = 'mat'\n[[runs]]\nmetod = 'mat'\nvalidate = true",
            [
                "runs[0].method: Field required",
                "runs[0]: unknown key 'metod'; did you mean 'method'?",
                "runs[0]: unknown key 'validate'; known: method, preset, set, tracks, seeds",
            ],
        ),
        ("methods = 'mat'\n[settings]\nmat = 1", ["settings.mat: Input should be a valid dict"]),
        ("methods = 'mat'\n[settings.mat]\neps = []", ["settings.mat.eps: the list is empty"]),
        (
            "methods = 'mat'\n[settings.mtt]\n[presets]\nmt = 'x'",
            [
                "presets.mt: 'mt' is not in `methods`; did you mean 'mat'?",
                "settings.mtt: 'mtt' is not in `methods`; did you mean 'mat'?",
            ],
        ),
    ],
)
def test_a_file_that_is_no_sweep_is_told_place_by_place(text, problems, tmp_path):
    path = write(tmp_path, text, tracks="")
    with pytest.raises(SweepFileError) as caught:
        read_sweep_file(path)
    assert len(caught.value.problems) == len(problems)
    for found, expected in zip(caught.value.problems, problems, strict=True):
        assert found.startswith(expected)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"methods = ", "not valid TOML: Invalid value"),
        (b"\xff\xfe", "not valid TOML: 'utf-8' codec"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "not valid TOML: maximum recursion depth"),
        (b"a = " + b"9" * 5000, "not valid TOML: Exceeds the limit"),
        (b"#" * (2**20 + 1), "is not the file of a sweep: it is larger than 1 MiB"),
    ],
    ids=["no value", "no text", "deep", "long number", "large"],
)
def test_a_file_that_cannot_be_read_is_one_line(content, message, tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_sweep_file(path)


def test_a_file_that_is_missing_or_a_folder_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        read_sweep_file(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_sweep_file(tmp_path)


def test_a_sweep_of_too_many_runs_is_refused_before_they_are_planned(tmp_path):
    values = math.isqrt(MAX_RUNS) + 1
    axes = f"iterations = {list(range(1, values + 1))}\nexperts = {list(range(1, values + 1))}"
    with pytest.raises(UsageError, match=rf"{values**2} runs are more than .* \({MAX_RUNS}\)"):
        planned(tmp_path, f'methods = "mtt"\n[settings.mtt]\n{axes}')
