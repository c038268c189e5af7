"""`robustdd convert`, and `robustdd evaluate` of foreign sets, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign_sets import digits_like, normalised, write_dc, write_folder, write_mtt
from PIL import Image
from small_runs import TRACK, record_json

from robustdd_bench.cli.main import main
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.files import file_sha256
from robustdd_bench.imports.formats import FORMATS
from robustdd_bench.protocol.preprocessing import Preprocessing

IMAGES, LABELS = digits_like()
DC = ("--format", "dc", "--space", "normalised", "--mean", "0.3", "--std", "0.2")


@pytest.fixture
def call(capsys):
    """Call robustdd; its exit code, stdout and stderr."""

    def _call(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return _call


@pytest.fixture
def dc(tmp_path):
    return write_dc(tmp_path / "res.pt", (normalised(IMAGES, (0.3,), (0.2,)), LABELS))


def test_convert_writes_one_of_our_sets_and_says_what_it_holds(dc, tmp_path, call) -> None:
    code, out, err = call("convert", dc, tmp_path / "a.safetensors", *DC)
    assert (code, err) == (0, "")
    made = DistilledSet.load(tmp_path / "a.safetensors")
    torch.testing.assert_close(made.images, IMAGES, rtol=0, atol=1e-6)
    assert made.preprocessing == Preprocessing("normalise", (0.3,), (0.2,))
    assert "20 images, 2 of each of 10 classes, pixels from -0.2 to 1.2" in out
    assert "normalise, mean 0.3, std 0.2" in out
    assert "\x1b" not in out
    assert file_sha256(tmp_path / "a.safetensors") in out


def test_convert_tells_the_same_as_json(dc, tmp_path, call) -> None:
    code, out, _ = call("convert", dc, tmp_path / "a.safetensors", *DC, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["sha256"] == file_sha256(tmp_path / "a.safetensors")
    assert told["images_per_class"] == [2] * 10
    assert told["preprocessing"]["kind"] == "normalise"
    assert told["provenance"]["imported"]["files"] == {"res.pt": file_sha256(dc)}


def test_convert_writes_over_nothing_unless_it_is_told_to(dc, tmp_path, call) -> None:
    target, picture = tmp_path / "a.safetensors", tmp_path / "a.png"
    for present in (target, picture):
        present.write_text("precious")
        code, _, err = call("convert", dc, target, *DC, "--preview", picture)
        assert code == 2
        assert err == f"error: {present} is there already; choose another name, or add --force\n"
        assert present.read_text() == "precious"
        present.unlink()
    target.write_text("old")
    assert call("convert", dc, target, *DC, "--preview", picture, "--force")[0] == 0
    assert len(DistilledSet.load(target)) == 20
    with Image.open(picture) as shown:
        assert shown.size == (2 * 34 + 2, 10 * 34 + 2)


def test_convert_never_writes_over_its_source(dc, tmp_path, call) -> None:
    before = dc.read_bytes()
    (tmp_path / "link.pt").symlink_to(dc)
    for target in (dc, tmp_path / "link.pt", dc.parent / "." / "res.pt"):
        code, _, err = call("convert", dc, target, *DC, "--force")
        assert code == 2
        assert "is the file that is read; write to another one" in err
    target = tmp_path / "a.safetensors"
    assert call("convert", dc, target, *DC, "--preview", target)[0] == 2
    assert call("convert", dc, tmp_path, *DC)[0] == 2
    assert dc.read_bytes() == before
    assert not target.exists()


def test_a_refused_file_leaves_nothing_behind(dc, tmp_path, call) -> None:
    dc.write_bytes(b"\x1b[2Jno set")
    code, out, err = call("convert", dc, tmp_path / "a.safetensors", *DC)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {dc} is not a readable torch file: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["res.pt"]


def test_a_disk_that_cannot_be_written_fails_in_one_line(dc, call) -> None:
    code, out, err = call("convert", dc, "/proc/nowhere/a.safetensors", *DC)
    assert (code, out) == (1, "")
    assert err.startswith("error: cannot write /proc/nowhere/a.safetensors: ")


def test_zca_takes_the_training_images_of_the_track(tmp_path, call) -> None:
    path = write_mtt(tmp_path / "mtt", IMAGES, LABELS)
    words = ("--format", "mtt", "--space", "zca", "--labels", "hard", "--learning-rate", "0.02")
    target = tmp_path / "a.safetensors"
    code, _, err = call("convert", path, target, *words)
    assert code == 2
    assert "name its --track" in err
    code, out, err = call("convert", path, target, *words, "--track", TRACK)
    assert code == 0
    assert "fitting ZCA on 1707 training images" in err
    assert "zca, epsilon 0.1" in out
    made = DistilledSet.load(target)
    assert made.preprocessing == Preprocessing("zca")
    assert made.learning_rate == 0.02


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"size": 4}, r"must be float32 of shape (n, *(1, 8, 8))"),
        ({"classes": 11}, "labels must lie in 0..9"),
    ],
)
def test_convert_holds_a_set_against_a_track_that_is_named(options, line, tmp_path, call) -> None:
    torch.save(list(digits_like(**options)), tmp_path / "data.pt")
    words = ("convert", tmp_path / "data.pt", tmp_path / "a.safetensors", "--format", "idc")
    code, _, err = call(*words, "--track", TRACK)
    assert code == 2
    assert "the set does not fit the track: " in err
    assert line in err
    assert not (tmp_path / "a.safetensors").exists()
    assert call(*words)[0] == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--space", "raw"), "--space is for foreign formats; name it with --format (dc, beard"),
        (("--learning-rate", "1"), "--learning-rate is for foreign formats"),
        (("--format", "dm"), "unknown format 'dm'"),
        (("--format", "dc"), "format dc does not say the space of its images"),
        ((*DC, "--index", "-1"), "invalid value for '--index'"),
        (("--format", "idc", "--factor", "9"), "invalid value for '--factor'"),
        (("--format", "folder"), "is no folder"),
    ],
)
def test_evaluate_says_what_is_missing_or_means_nothing(words, line, dc, tmp_path, call) -> None:
    out = tmp_path / "runs"
    code, text, err = call("evaluate", dc, "--track", TRACK, "--out", out, *words)
    assert (code, text) == (2, "")
    assert err.count("\n") == 1
    assert line in err
    assert not out.exists()


def test_a_foreign_file_gives_the_record_of_the_set_it_converts_to(dc, tmp_path, call) -> None:
    words = (*DC, "--augmentation", "color_crop")
    place = ("--track", TRACK, "--out", tmp_path / "a", "--device", "cpu", "--json")
    code, out, err = call("evaluate", dc, *words, *place)
    assert code == 0, err
    assert "read 20 images, 2 of each of 10 classes, pixels from -0.2 to 1.2" in err
    direct = json.loads(out)
    record = record_json(Path(direct["folder"]))
    assert record["method"]["name"] == "given"
    assert record["distilled"]["augmentation"] == "color_crop"
    assert record["distilled"]["preprocessing"]["mean"] == [0.3]
    assert record["distilled"]["provenance"]["imported"]["files"] == {"res.pt": file_sha256(dc)}

    target = tmp_path / "b.safetensors"
    assert call("convert", dc, target, *words)[0] == 0
    (place_b := list(place))[3] = tmp_path / "b"
    code, out, _ = call("evaluate", target, *place_b)
    assert code == 0
    again = json.loads(out)
    assert again["run_id"] == direct["run_id"]
    second = record_json(Path(again["folder"]))
    assert second["results_sha256"] == record["results_sha256"]
    assert second["students"] == record["students"]


def test_a_set_that_is_taken_apart_needs_a_track_of_that_many_images(tmp_path, call) -> None:
    torch.save([IMAGES, LABELS], tmp_path / "data.pt")
    words = ("evaluate", tmp_path / "data.pt", "--format", "idc", "--track", TRACK)
    place = ("--out", tmp_path / "runs", "--dry-run")
    code, _, err = call(*words, *place, "--factor", "2")
    assert code == 2
    assert "taken apart, the set has 8 images of a class, and track fast@1 is for 2" in err
    assert "needs a track of 8 images per class; or leave --factor out" in err
    assert call(*words, *place)[0] == 0
    track = tmp_path / "eight.toml"
    track.write_text(TRACK.read_text().replace("ipc = 2", "ipc = 8"))
    assert call(*words[:-1], track, *place, "--factor", "2")[0] == 0


def test_a_folder_of_images_is_no_run_if_the_format_says_so(tmp_path, call) -> None:
    root = write_folder(tmp_path / "set", IMAGES, LABELS, [f"new{k:03d}" for k in range(10)])
    words = ("evaluate", root, "--track", TRACK, "--out", tmp_path / "runs", "--dry-run")
    assert call(*words, "--format", "folder")[0] == 0
    code, _, err = call(*words)
    assert code == 2
    assert "record.json" in err


def test_the_options_of_formats_are_in_the_page_about_them() -> None:
    page = (Path(__file__).parent.parent / "docs" / "importing.md").read_text()
    for name in FORMATS:
        assert f"| `{name}` |" in page
        assert f"--format {name}" in page
