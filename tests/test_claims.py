"""What README and the studies state is what the committed data say.

Every "x to y" in their prose is either an interval that is computed here from the published
records, or a range that is no interval and is named as such: a new one fails until it is entered.
Intervals in a study's table come from the outcomes that its file keeps, or their row says that none
were kept.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from pages import BOARD, committed_runs
from scipy import stats

from robustdd_bench.board.compare import choose, compare_standings
from robustdd_bench.board.kept import differences as kept_differences
from robustdd_bench.board.publish import current
from robustdd_bench.board.standings import standings
from robustdd_bench.evaluation.outcomes import unpack_bits
from robustdd_bench.files import read_json
from robustdd_bench.protocol.tracks import eps_label

ROOT = BOARD.parent
STUDIES = ROOT / "docs" / "studies"
IPC10, IPC1, MLP = "digits-ipc10", "digits-ipc1", "digits-ipc10-transfer-mlp"


class Claim(NamedTuple):
    """An interval of A minus B, as it is written; `times` -1 where it is written the other way."""

    file: str
    text: str
    track: str
    a: str
    b: str
    eps: float
    times: int = 1


README, RESULTS = "README.md", "docs/results.md"
MAT_DIGITS = "docs/studies/mat-digits.md"
MAT_CIFAR = "docs/studies/mat-cifar10.md"
SMALL = "cifar10-small-ipc5"
FULL_DATA = "1d0838e6ce43"
"""MTT by its preset `full-data`."""
RATES = "0eda0ec32b6c"
"""The same with the rates of MAT."""
CLAIMS = [
    Claim(README, "10.9 to 21.5", IPC10, "mat", "mtt", 0.1),
    Claim(README, "-1.5 to 5.1", MLP, "mat", "mtt", 0.1),
    *(
        Claim(file, text, SMALL, "mat", RATES, eps)
        for file in (README, RESULTS, MAT_CIFAR)
        for text, eps in (("2.3 to 5.6", 2 / 255), ("0.6 to 5.1", 1 / 255), ("-2.8 to 1.9", 0.0))
    ),
    *(
        Claim(file, text, SMALL, a, b, eps, times)
        for file in (RESULTS, MAT_CIFAR)
        for text, a, b, eps, times in (
            ("1.0 to 2.3", "mat", RATES, 4 / 255, 1),
            ("4.8 to 10.0", RATES, FULL_DATA, 0.0, 1),
            ("0.4 to 2.5", RATES, FULL_DATA, 2 / 255, 1),
            ("-1.3 to 1.8", RATES, "random", 2 / 255, 1),
            ("0.4 to 1.8", RATES, "random", 4 / 255, -1),
        )
    ),
    Claim(MAT_CIFAR, "2.6 to 6.7", SMALL, RATES, FULL_DATA, 1 / 255),
    Claim(RESULTS, "12.8 to 17.6", SMALL, RATES, "random", 0.0),
    Claim(RESULTS, "0.1 to 3.3", SMALL, "random", "herding", 2 / 255),
    Claim("CHANGELOG.md", "2.3 to 5.6", SMALL, "mat", RATES, 2 / 255),
    Claim(RESULTS, "5.8 to 9.3", SMALL, "mat", FULL_DATA, 1 / 255),
    Claim(RESULTS, "3.6 to 7.1", SMALL, "mat", FULL_DATA, 2 / 255),
    Claim(RESULTS, "0.7 to 2.2", SMALL, "mat", FULL_DATA, 4 / 255),
    Claim(RESULTS, "5.0 to 9.1", SMALL, "mat", FULL_DATA, 0.0),
    Claim(RESULTS, "2.7 to 5.7", SMALL, "mat", "random", 2 / 255),
    Claim(RESULTS, "2.5 to 4.9", SMALL, "k-means", "random", 2 / 255, -1),
    Claim(RESULTS, "10.9 to 21.5", IPC10, "mat", "mtt", 0.1),
    Claim(RESULTS, "5.8 to 14.3", IPC10, "mat", "dm", 0.1),
    Claim(RESULTS, "3.4 to 11.7", IPC10, "mat", "full", 0.1),
    Claim(RESULTS, "0.7 to 5.4", IPC10, "mat", "full", 0.05, -1),
    Claim(RESULTS, "-1.7 to 2.0", IPC10, "mat", "mtt", 0.0),
    Claim(RESULTS, "-1.4 to 1.1", IPC10, "mat", "dm", 0.0),
    Claim(RESULTS, "5.8 to 14.2", IPC1, "mat", "mtt", 0.1),
    Claim(RESULTS, "-5.0 to 0.8", IPC1, "mat", "dm", 0.1),
    Claim(RESULTS, "-2.9 to 3.8", IPC1, "mat", "dc", 0.1),
    Claim(RESULTS, "-2.1 to 4.4", IPC1, "mat", "dsa", 0.1),
    Claim(RESULTS, "-1.0 to 5.0", IPC1, "mat", "k-means", 0.1),
    Claim(RESULTS, "0.1 to 6.4", IPC1, "mat", "dm", 0.15, -1),
    Claim(RESULTS, "0.3 to 6.6", IPC1, "mat", "dc", 0.15, -1),
    Claim(RESULTS, "-4.3 to 5.1", IPC10, "mtt", "random", 0.1),
    Claim(RESULTS, "-1.5 to 5.1", MLP, "mat", "mtt", 0.1),
    Claim(RESULTS, "-0.7 to 8.2", MLP, "mat", "random", 0.1),
    Claim(RESULTS, "0.9 to 10.0", MLP, "mat", "mtt", 0.15),
    Claim(MAT_DIGITS, "2.8 to 9.3", IPC10, "dm", "mtt", 0.1),
    Claim(MAT_CIFAR, "3.6 to 7.1", SMALL, "mat", FULL_DATA, 2 / 255),
    Claim(MAT_CIFAR, "5.8 to 9.3", SMALL, "mat", FULL_DATA, 1 / 255),
    Claim(MAT_CIFAR, "5.0 to 9.1", SMALL, "mat", FULL_DATA, 0.0),
    Claim(MAT_CIFAR, "2.7 to 5.7", SMALL, "mat", "random", 2 / 255),
    Claim("CHANGELOG.md", "3.6 to 7.1", SMALL, "mat", FULL_DATA, 2 / 255),
    Claim("CHANGELOG.md", "-0.3 to +7.7", MLP, "dc", "mat", 0.1),
]


class KeptClaim(NamedTuple):
    """An interval of one run minus another, from the outcomes that a study's file keeps."""

    file: str
    text: str
    study: str
    a: str
    b: str
    level: str


MAT_CIFAR = "docs/studies/mat-cifar10.md"
MAT_SLICE, MTT_SLICE, RANDOM_SLICE = "e6775036b7a4", "4d4f8ab2af10", "e6c86b5d13af"
MAT_2_SLICE = "0f1f6ae00f3c"
MAT_W32, MTT_W32 = "77a94e74c457", "ebbc545cd9d6"
MAT_10K, MTT_10K, RANDOM_10K = "6d6665463943", "a079596a68bb", "89d88dd090dc"
MAT_CHOSEN, MTT_CHOSEN, RANDOM_W32 = "042e458a87df", "f4a9c7c5ef4f", "4b810d7a5740"
CONTROLS = "cifar10-controls"
C_MAT, C_MTT, C_RATES, C_NATURAL = "8997ecc651af", "1238fa524b29", "0911ad8ed77f", "2a2c50d57baf"
KEPT = [
    KeptClaim(MAT_CIFAR, "1.0 to 7.2", "mat-cifar10", MAT_SLICE, MTT_SLICE, "2/255"),
    KeptClaim(MAT_CIFAR, "2.8 to 10.1", "mat-cifar10", MAT_SLICE, MTT_SLICE, "1/255"),
    KeptClaim(MAT_CIFAR, "-0.6 to 2.2", "mat-cifar10", MAT_SLICE, MTT_SLICE, "4/255"),
    KeptClaim(MAT_CIFAR, "-0.1 to 7.6", "mat-cifar10", MAT_SLICE, MTT_SLICE, "clean"),
    KeptClaim(MAT_CIFAR, "-3.0 to 3.4", "mat-cifar10", MTT_SLICE, RANDOM_SLICE, "2/255"),
    KeptClaim(MAT_CIFAR, "-2.0 to 6.0", "mat-cifar10", MAT_SLICE, MAT_2_SLICE, "2/255"),
    KeptClaim(MAT_CIFAR, "-2.0 to 5.6", "mat-cifar10", MAT_2_SLICE, MTT_SLICE, "2/255"),
    KeptClaim(MAT_CIFAR, "4.4 to 10.4", "mat-cifar10", MAT_10K, MTT_10K, "2/255"),
    KeptClaim(MAT_CIFAR, "3.8 to 9.7", "mat-cifar10", MAT_10K, MTT_10K, "clean"),
    KeptClaim(MAT_CIFAR, "0.6 to 5.0", "mat-cifar10", MTT_10K, RANDOM_10K, "2/255"),
    KeptClaim(MAT_CIFAR, "0.1 to 5.4", "mat-cifar10", MAT_W32, MTT_W32, "2/255"),
    KeptClaim(MAT_CIFAR, "-2.0 to 5.2", "mat-cifar10", MAT_W32, MTT_W32, "clean"),
    KeptClaim(MAT_CIFAR, "0.3 to 4.8", "mat-cifar10", MAT_CHOSEN, MTT_CHOSEN, "2/255"),
    KeptClaim(MAT_CIFAR, "0.6 to 3.3", "mat-cifar10", MAT_CHOSEN, MTT_CHOSEN, "4/255"),
    KeptClaim(MAT_CIFAR, "-1.6 to 5.2", "mat-cifar10", MAT_CHOSEN, MTT_CHOSEN, "1/255"),
    KeptClaim(MAT_CIFAR, "-5.2 to 2.8", "mat-cifar10", MAT_CHOSEN, MTT_CHOSEN, "clean"),
    KeptClaim(MAT_CIFAR, "5.3 to 10.4", "mat-cifar10", MTT_CHOSEN, RANDOM_W32, "2/255"),
    *(
        KeptClaim(f"docs/studies/{CONTROLS}.md", text, CONTROLS, a, b, level)
        for text, a, b, level in (
            ("-1.9 to 2.5", C_MAT, C_NATURAL, "2/255"),
            ("-1.4 to 4.4", C_MAT, C_NATURAL, "1/255"),
            ("0.5 to 3.5", C_MAT, C_RATES, "2/255"),
            ("-0.4 to 4.0", C_NATURAL, C_RATES, "2/255"),
            ("-1.9 to 0.4", "5d22a421ee40", C_MTT, "2/255"),
            ("0.8 to 4.1", C_MAT, "3656fd1328ad", "2/255"),
            ("0.6 to 4.2", "3656fd1328ad", C_MTT, "2/255"),
            ("-0.2 to 3.0", "7a34bdbcdc91", "2a6f2cfe2597", "2/255"),
            ("0.7 to 4.4", "ffdc7a27d037", "4ff611b56a4e", "2/255"),
            ("0.5 to 3.9", "59ffe74fcf51", "fd6cdaf17c85", "2/255"),
            ("1.3 to 8.2", "a060afbd7145", "bdae62e335ea", "2/255"),
            ("1.2 to 6.5", "856711f1608d", "c1a06448e668", "2/255"),
            ("-2.4 to 3.2", "ffdc7a27d037", "ac12701c6e5c", "2/255"),
            ("1.8 to 6.1", "59ffe74fcf51", "7bd1316f15ec", "2/255"),
        )
    ),
    KeptClaim(RESULTS, "0.1 to 5.4", "mat-cifar10", MAT_W32, MTT_W32, "2/255"),
    KeptClaim(RESULTS, "4.4 to 10.4", "mat-cifar10", MAT_10K, MTT_10K, "2/255"),
    KeptClaim(RESULTS, "1.0 to 7.2", "mat-cifar10", MAT_SLICE, MTT_SLICE, "2/255"),
]
RANGES = {
    (RESULTS, "2.6 to 4.8"): "what the stronger suite took, row by row",
    ("docs/studies/attack-parity.md", "0 to 4"): "seeds",
    ("docs/studies/attacks-digits.md", "2.6 to 4.8"): "what the stronger suite took, row by row",
    ("docs/studies/attacks-digits.md", ".7 to 1.7"): "what an attack took, set by set",
    ("docs/studies/digits-tuning-baselines.md", "1 to 4"): "deviations over students",
    ("docs/studies/digits-tuning-baselines.md", "94.4 to 123.2"): "sums of three methods",
    ("docs/studies/expert-precision.md", "1 to 1"): "a rounding",
    ("docs/studies/mat-cifar10.md", ".74 to .76"): "losses",
    (MAT_DIGITS, "0 to .99"): "two settings",
    (MAT_DIGITS, "2.8 to 3.6"): "differences at three settings",
    (MAT_DIGITS, "61.7 to 63.2"): "means of three flavours",
    (MAT_DIGITS, "0.5 to 5.2"): "deviations over seeds",
    (MAT_DIGITS, "96.3 to 96.5"): "means of three methods",
}
PAIR = re.compile(r"(?<![\w.])([-+]?\d*\.?\d+) to ([-+]?\d*\.?\d+)(?!\w)")


def prose(path: Path) -> str:
    """A text without code, tables and what is generated."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"<!-- begin (board|tables) -->.*?<!-- end \1 -->", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return " ".join(" ".join(x for x in text.splitlines() if not x.startswith("|")).split())


@cache
def runs():
    return committed_runs()


@cache
def differences(track: str, a: str, b: str):
    """Level -> paired difference of two published rows."""
    found = compare_standings(*choose(runs(), a, b, track))
    return dict(zip(found.levels, found.differences, strict=True))


def test_every_interval_in_prose_is_computed_or_is_no_interval() -> None:
    files = [*(ROOT / name for name in (README, RESULTS, "CHANGELOG.md")), *STUDIES.glob("*.md")]
    found = {
        (path.relative_to(ROOT).as_posix(), match[0])
        for path in files
        for match in PAIR.finditer(prose(path))
    }
    claims = [(claim.file, claim.text) for claim in (*CLAIMS, *KEPT)]
    assert found == set(claims) | RANGES.keys()
    assert len(claims) == len(set(claims))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.file}: {claim.text}")
def test_the_published_records_give_the_interval(claim: Claim) -> None:
    interval = differences(claim.track, claim.a, claim.b)[claim.eps].interval
    ends = sorted(100 * claim.times * end for end in (interval.low, interval.high))
    stated = [float(end) for end in PAIR.fullmatch(claim.text).groups()]
    assert stated == pytest.approx(ends, abs=0.0501)


@pytest.mark.parametrize("claim", KEPT, ids=lambda claim: f"{claim.file}: {claim.text}")
def test_the_outcomes_that_a_study_keeps_give_the_interval(claim: KeptClaim) -> None:
    rows = read_json(STUDIES / f"{claim.study}.json")["runs"]
    kept = {row["run_id"]: row["outcomes"] for row in rows if "outcomes" in row}
    found = {
        eps_label(eps) if eps else "clean": one.interval
        for eps, one in kept_differences([kept[claim.a]], [kept[claim.b]])
    }
    ends = [100 * found[claim.level].low, 100 * found[claim.level].high]
    stated = [float(end) for end in PAIR.fullmatch(claim.text).groups()]
    assert stated == pytest.approx(ends, abs=0.0501)


def test_the_facts_of_the_readme_are_those_of_the_records() -> None:
    text = prose(ROOT / README)
    found = differences(IPC10, "mat", "mtt")[0.1]
    for value in (found.a, found.b, found.difference):
        assert f"{100 * value:.1f}" in text
    (mat,) = (s for s in standings(current(runs(), IPC10)) if s.method == "mat")
    students, examples = mat.records[0].track.students.count, mat.records[0].data
    assert (
        f"{len(mat.records)} distillation seeds, {students} students each, "
        f"{examples.evaluation_examples} test images"
    ) in text


def test_what_is_called_ahead_or_level_is_so() -> None:
    text = prose(ROOT / RESULTS)
    others = [m for m in methods(IPC10) if m not in ("mat", "full")]
    assert "MAT is ahead of every other set at each eps" in text
    for other in others:
        for eps, one in differences(IPC10, "mat", other).items():
            assert eps == 0 or one.interval.low > 0, (other, eps)
    assert "DM, DC, DSA and k-means are all more robust than MTT (by 7.9 points or more)" in text
    gains = [differences(IPC1, m, "mtt")[0.1] for m in ("dm", "dc", "dsa", "k-means")]
    assert all(gain.interval.low > 0 for gain in gains)
    assert round(100 * min(gain.difference for gain in gains), 1) == 7.9
    for a, b, stated in (("mat", "mtt", 16.1), ("mat", "dm", 10.0), ("mat", "full", 7.7)):
        assert f"{stated:.1f}" in text
        assert round(100 * differences(IPC10, a, b)[0.1].difference, 1) == stated
    assert round(100 * differences(IPC10, "full", "mat")[0.05].difference, 1) == 3.0
    assert round(100 * differences(IPC1, "mat", "mtt")[0.1].difference, 1) == 10.0
    dc = differences(MLP, "mat", "dc")[0.1].interval
    assert "MAT is between 7.7 below and 0.3 above" in text
    assert (round(100 * dc.low, 1), round(100 * dc.high, 1)) == (-7.7, 0.3)


def methods(track: str) -> list[str]:
    return [row.method for row in standings(current(runs(), track))]


def test_what_the_stronger_suite_took_is_in_the_records() -> None:
    took, first = {}, {}
    for row in standings(current(runs(), IPC10)):
        old, new = [], []
        for student in (s for record in row.records for s in record.students):
            bits = unpack_bits(student.clean).numpy()
            weak = bits.copy()
            for result in student.attacks:
                if result.eps <= 0.1:
                    found = unpack_bits(result.robust).numpy()
                    bits = bits & found
                    weak = weak & found if result.attack in ("noise", "fgsm", "pgd") else weak
            old.append(weak.mean())
            new.append(bits.mean())
        first[row.method] = round(100 * np.mean(old), 1)
        took[row.method] = round(100 * (np.mean(old) - np.mean(new)), 1)
    assert (first["mat"], first["mtt"], first["full"]) == (65.9, 50.7, 60.7)
    assert took.pop("mat") == 1.7
    assert (min(took.values()), max(took.values())) == (2.6, 4.8)


def seeds(**wanted) -> np.ndarray:
    """Robust accuracy at .10 and .15 in % by seed, (3, 2), of a setting of the study of MAT."""
    rows = read_json(STUDIES / "mat-digits.json")["runs"]
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert [row["seed"] for row in found] == [0, 1, 2]
    return 100 * np.array([row["accuracy"][2:4] for row in found])


def test_the_study_of_mat_says_what_its_three_seeds_say() -> None:
    text = prose(STUDIES / "mat-digits.md")
    mtt = seeds(method="mtt")
    plain = seeds(method="mat", flavour="pgd", eps=0.1, ema=0.0)
    mat = seeds(method="mat", flavour="pgd", eps=0.1, ema=0.99)
    natural = seeds(method="mat", flavour="natural", eps=0.0, ema=0.99)
    means = [round(float(x[:, 0].mean()), 1) for x in (mtt, plain, mat, natural)]
    assert means == [53.4, 64.6, 66.4, 58.5]
    steps = [
        round(float((b - a)[:, 0].mean()), 1)
        for a, b in ((mtt, plain), (plain, mat), (mtt, natural), (natural, mat))
    ]
    assert steps == [11.3, 1.8, 5.1, 7.9]
    assert "11.3 + 1.8 points" in text
    assert "5.1 + 7.9" in text
    # The order in which the two are added decides what each is worth: the page of results says so.
    assert "eleven if the moving average comes last and eight if it comes first" in prose(
        ROOT / RESULTS
    )
    ratio = float(plain[:, 0].var(ddof=1) / mat[:, 0].var(ddof=1))
    one_sided = float(stats.f.sf(ratio, 2, 2))
    assert (round(ratio, 1), round(one_sided, 2), round(2 * one_sided, 2)) == (10.1, 0.09, 0.18)
    assert "F 10.1, p .09 one-sided, .18 two-sided" in text
    spreads = [
        round(float(seeds(method="mat", **setting)[:, 0].std(ddof=1)), 1)
        for setting in (
            {"flavour": "pgd", "eps": 0.1, "ema": 0.9},
            {"flavour": "pgd", "eps": 0.05, "ema": 0.99},
            {"flavour": "natural", "eps": 0.0, "ema": 0.99},
        )
    ]
    assert spreads == [5.2, 4.3, 5.0]
    assert "5.2 at ema .9, and at ema .99 4.3 with experts of .05 and 5.0 with natural" in text
    by_seed = np.round(mat - plain, 1).T.tolist()
    assert by_seed == [[2.6, 3.1, -0.4], [6.4, 3.0, 1.0]]
    assert "steady" not in prose(ROOT / RESULTS).replace("steadier three seeds cannot say", "")


def test_the_tuning_was_not_equal_and_is_said_not_to_be() -> None:
    import tomllib

    tuning = (STUDIES / "digits-tuning.md").read_text(encoding="utf-8")
    scan = tuning.partition("## The scan")[2]
    counted = {
        method: len(re.findall(rf"^\| {method} \|", scan, re.MULTILINE))
        + tuning.partition(f"### {method} on")[2].partition("Shared")[0].count(" | 0 | ")
        for method in ("mat", "mtt")
    }
    assert counted == {"mat": 20, "mtt": 19}
    assert "MAT had 20 settings and MTT 19" in " ".join(tuning.split())
    baselines = (STUDIES / "digits-tuning-baselines.md").read_text(encoding="utf-8")
    for part in baselines.split("## digits-ipc")[1:]:
        for method in ("dc", "dsa", "dm"):
            rows = re.findall(rf"^\| \**{method}\** \|", part, re.MULTILINE)
            assert len(rows) in (3, 4), (method, rows)
    for method in ("dc", "dsa"):
        presets = tomllib.loads(
            (ROOT / f"baselines/robustdd_dc/presets_{method}.toml").read_text(encoding="utf-8")
        )
        assert {table["outer"] for table in presets["default"].values()} == {1}


def test_intervals_in_a_studys_table_are_computed_or_marked() -> None:
    spec = importlib.util.spec_from_file_location("sweep", ROOT / "scripts" / "study_sweep.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweep"] = module
    spec.loader.exec_module(module)
    seen = {module.COMPUTED: 0, module.NOT_KEPT: 0}
    for path in sorted(STUDIES.glob("*.md")):
        # Drawn whole from their outcomes: test_studies.py.
        if path.stem in ("normalised-pixels", CONTROLS):
            continue
        text = path.read_text(encoding="utf-8")
        results = path.with_suffix(".json")
        rows = [line for line in text.splitlines() if PAIR.search(line) and line.startswith("|")]
        stated = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
        stated = [cells for cells in stated if cells[-1].strip() in seen]
        if not stated:
            assert "95 % interval" not in text, path
            continue
        for what, level, difference, interval, status in stated:
            seen[status] += 1
            if status == module.NOT_KEPT:
                continue
            data = read_json(results)
            (item,) = [item for item in data["comparisons"] if item["what"] == what]
            found = {
                "clean" if eps == 0 else module.eps_label(eps): one
                for eps, one in module.compared(data, item["a"], item["b"])
            }[level]
            ends = [100 * found.interval.low, 100 * found.interval.high]
            assert [float(end) for end in interval.split(" to ")] == pytest.approx(ends, abs=0.051)
            assert float(difference) == pytest.approx(100 * found.difference, abs=0.051)
    assert seen[module.COMPUTED] >= 2
