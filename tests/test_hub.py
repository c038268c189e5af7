"""Sets on the hub, against a folder that answers as the hub's client does."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from small_runs import example, registry

from robustdd_bench.cli.main import main
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.exports.write import export
from robustdd_bench.protocol.terms import IMAGENET, UNKNOWN, Terms, terms_of
from robustdd_bench.records.parts import OverlapInfo

pytest.importorskip("pyarrow")
pytest.importorskip("huggingface_hub")

from hub_folder import FolderHub

from robustdd_bench.hub import push as pushing
from robustdd_bench.hub.address import HubAddress, parse_address
from robustdd_bench.hub.push import FILES, plan_upload

NAME = "lab/mat-digits"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = FolderHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda library_name: made)
    return made


def exported(method, target):
    source = example(method)
    distilled = DistilledSet.load(source.folder / "distilled.safetensors")
    export(distilled, source.record, source.folder, target, registry(), layout="hub")
    return target


def test_the_parquet_file_holds_the_set_without_loss(tmp_path) -> None:
    from PIL import Image

    folder = exported("mat", tmp_path / "out")
    distilled = DistilledSet.load(folder / "distilled.safetensors")
    rows = pandas.read_parquet(folder / "data" / "train-00000-of-00001.parquet")
    shape = distilled.images.shape[1:]
    images = np.stack([pixels.reshape(shape) for pixels in rows["pixels"]])
    assert torch.equal(torch.from_numpy(images), distilled.images)
    assert rows["label"].tolist() == distilled.labels.tolist()
    seen = np.asarray(Image.open(io.BytesIO(rows["image"][3]["bytes"])))
    wanted = distilled.images[3, 0].clamp(0, 1).mul(255).round()
    assert np.array_equal(seen, wanted.numpy())


def test_soft_labels_have_a_column_of_their_own(tmp_path) -> None:
    weights = torch.rand((20, 10), generator=torch.Generator().manual_seed(0))
    labels = weights / weights.sum(1, keepdim=True)
    distilled = DistilledSet(images=torch.rand(20, 3, 8, 8), labels=labels)
    export(distilled, None, tmp_path, tmp_path / "out", registry(), layout="hub")
    rows = pandas.read_parquet(tmp_path / "out" / "data" / "train-00000-of-00001.parquet")
    assert torch.equal(torch.from_numpy(np.stack(rows["soft_label"].tolist())), labels)
    assert rows["label"].tolist() == labels.argmax(1).tolist()
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert 'labels = rows["soft_label"]' in card


def test_croissant_is_valid_and_reads_the_set(tmp_path) -> None:
    pytest.importorskip("mlcroissant")
    folder = exported("mat", tmp_path / "out")
    code = (
        "import json, sys, mlcroissant as mlc\n"
        "found = mlc.Dataset(jsonld=sys.argv[1])\n"
        "rows = list(found.records('images'))\n"
        "issues = found.metadata.ctx.issues\n"
        "print(json.dumps([sorted(issues.errors), sorted(issues.warnings), len(rows),\n"
        "    [row['images/label'] for row in rows], list(map(float, rows[0]['images/pixels']))]))"
    )
    # Its libraries change warnings and logging, so it has a process of its own.
    told = subprocess.run(
        [sys.executable, "-c", code, folder / "croissant.json"],
        capture_output=True,
        text=True,
        check=True,
    )
    errors, warnings, count, labels, pixels = json.loads(told.stdout)
    distilled = DistilledSet.load(folder / "distilled.safetensors")
    assert errors == []
    assert [line for line in warnings if "license" not in line and '"url"' not in line] == []
    assert (count, labels) == (len(distilled.images), distilled.labels.tolist())
    assert pixels == distilled.images[0].flatten().tolist()


def test_a_licence_goes_into_card_and_croissant(tmp_path, capsys) -> None:
    run = str(example("mat").folder)
    for licence, line in (("CC-BY-4.0", "license: cc-by-4.0"), ("LAB-1", 'license_name: "LAB-1"')):
        out = tmp_path / licence
        assert main(["export", run, "--to", str(out), "--as", "hub", "--licence", licence]) == 0
        assert line in (out / "README.md").read_text(encoding="utf-8").splitlines()
        assert json.loads((out / "croissant.json").read_text())["license"] == licence
    call = ["export", run, "--to", str(tmp_path / "bad"), "--as", "hub", "--licence", "a\nb: c"]
    assert main(call) == 2
    assert "--licence takes an SPDX expression" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_without_its_package_the_layout_says_what_to_install(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    out = tmp_path / "out"
    assert main(["export", str(example("mat").folder), "--to", str(out), "--as", "hub"]) == 2
    said = capsys.readouterr().err
    assert "layout hub needs pyarrow: pip install 'robustdd-bench[hub]'" in said
    assert not out.exists()


def test_a_set_goes_up_and_comes_back(hub, tmp_path, capsys) -> None:
    folder = exported("mat", tmp_path / "out")
    (folder / "notes.txt").write_text("mine")
    assert main(["push", str(folder), NAME, "--json"]) == 0
    told = capsys.readouterr()
    assert "left out, as they are of no export: notes.txt" in told.err
    found = json.loads(told.out)
    assert hub.private == {NAME: True}
    assert found["new"]
    there = hub.files(NAME)
    assert set(there) == {*FILES, ".gitattributes"}
    assert all(there[name] == (folder / name).read_bytes() for name in FILES)
    link = f"https://huggingface.co/datasets/{NAME}/tree/{found['commit']}"
    assert found["link"] == link

    call = ["evaluate", f"hub:{NAME}", "--track", "digits-ipc10", "--dry-run", "--json"]
    call += ["--out", str(tmp_path / "runs")]
    assert main(call) == 0
    told = capsys.readouterr()
    assert f"read hub:{NAME}@{found['commit']}" in told.err
    digest = json.loads(told.out)["config"]["sha256"]
    kept = tmp_path / "runs" / "store" / "sets" / f"{digest}.safetensors"
    assert kept.read_bytes() == there["distilled.safetensors"]


def test_pushing_again_makes_a_commit_and_leaves_other_runs_alone(hub, tmp_path, capsys) -> None:
    folder = exported("mat", tmp_path / "mat")
    assert main(["push", str(folder), NAME, "--public"]) == 0
    told = capsys.readouterr()
    first = hub.repo_info(repo_id=NAME, revision=None, repo_type="dataset").sha
    assert told.out == f"https://huggingface.co/datasets/{NAME}/tree/{first}\n"
    assert f"next: robustdd publish RUN --link {told.out}" in told.err
    assert hub.private == {NAME: False}
    card = folder / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    assert main(["push", str(folder), NAME, "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["new"]
    assert hub.files(NAME)["README.md"].endswith(b"more\n")
    before = hub.files(NAME)
    other = exported("random", tmp_path / "random")
    assert main(["push", str(other), NAME]) == 2
    told = capsys.readouterr().err
    mine, its = example("random").record.run_id, example("mat").record.run_id
    assert f"{NAME} holds run {its}, and this is run {mine}; name another" in told
    assert hub.files(NAME) == before


def test_what_is_no_set_of_ours_is_left_alone(hub, tmp_path, capsys) -> None:
    hub.add(NAME, {"train.csv": b"1"})
    folder = exported("mat", tmp_path / "out")
    assert main(["push", str(folder), NAME]) == 2
    assert f"{NAME} holds something else; name another repository" in capsys.readouterr().err
    assert "upload_folder" not in hub.calls
    hub.add("lab/card", {"README.md": b"soon", ".gitattributes": b""})
    assert main(["push", str(folder), "lab/card"]) == 0


def test_a_dry_run_asks_nobody(hub, tmp_path, capsys) -> None:
    folder = exported("mat", tmp_path / "out")
    assert main(["push", str(folder), NAME, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"would be uploaded to {NAME}, private if it is new" in shown
    assert all(name in shown for name in FILES)
    assert main(["push", str(folder), NAME, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["private"] is True
    assert hub.calls == []


def test_a_changed_export_is_not_uploaded(hub, tmp_path, capsys) -> None:
    folder = exported("mat", tmp_path / "out")
    other = exported("random", tmp_path / "random")

    def refused(name, why):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        if (other / name).exists() and why is not None:
            shutil.copy(other / name, copy / name)
        assert main(["push", str(copy), NAME]) == 2
        told = capsys.readouterr().err
        assert (why or f"has no {name}; write it with `robustdd export RUN --to") in told
        shutil.rmtree(copy)

    refused("distilled.safetensors", "distilled.safetensors is not the set of record.json")
    refused("data/train-00000-of-00001.parquet", "is not the file of croissant.json")
    for name in FILES:
        refused(name, None)
    os.mkfifo(folder / "pipe")
    (folder / "README.md").unlink()
    (folder / "pipe").rename(folder / "README.md")
    assert main(["push", str(folder), NAME]) == 2
    assert "README.md is a pipe, not a regular file" in capsys.readouterr().err
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    assert main(["push", str(folder), NAME]) == 2
    assert "has no README.md" in capsys.readouterr().err
    assert main(["push", str(tmp_path / "nowhere"), NAME]) == 2
    assert main(["push", str(example("mat").folder), NAME]) == 2
    assert hub.calls == []


@pytest.mark.parametrize(
    "address",
    ["hub:", "hub:name", "hub:a/b/c", "hub:a/b@", "hub:a/..", "hub:a/b@-x", "hub: a/b", "hub:/b"],
)
def test_addresses_that_are_none(address, capsys) -> None:
    assert main(["evaluate", address, "--track", "digits-ipc10"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UsageError):
        parse_address(address)


def test_addresses() -> None:
    assert parse_address("hub:a/b.c-d") == HubAddress("a/b.c-d")
    assert parse_address("hub:a/b@v1.0") == HubAddress("a/b", "v1.0")
    assert str(parse_address("hub:a/b@refs/pr/1")) == "hub:a/b@refs/pr/1"


def test_what_the_hub_does_not_have(hub, capsys) -> None:
    def told(*words):
        assert main(["evaluate", *words, "--track", "digits-ipc10"]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "the hub has no dataset lab/none, or it is private" in told("hub:lab/none")
    commit = hub.add("lab/empty", {"README.md": b""})
    assert told("hub:lab/empty@v2") == "error: lab/empty has no revision v2"
    said = f"error: lab/empty at {commit[:12]} has no file distilled.safetensors"
    assert told("hub:lab/empty") == said
    assert "only distilled.safetensors is read" in told("hub:lab/empty", "--format", "dc")


def test_a_set_that_is_not_what_the_hub_or_its_record_says(hub, tmp_path, capsys) -> None:
    folder = exported("mat", tmp_path / "out")
    assert main(["push", str(folder), NAME]) == 0
    call = ["evaluate", f"hub:{NAME}", "--track", "digits-ipc10", "--dry-run"]
    call += ["--out", str(tmp_path / "runs")]
    assert main(call) == 0
    cached = next((hub.root / "cache").rglob("distilled.safetensors"))
    cached.write_bytes(cached.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert main(call) == 1
    assert "is not the file distilled.safetensors that the hub has" in capsys.readouterr().err
    other = (exported("random", tmp_path / "random") / "distilled.safetensors").read_bytes()
    hub.add(NAME, hub.files(NAME) | {"distilled.safetensors": other})
    assert main(call) == 1
    assert "is not the set of record.json beside it" in capsys.readouterr().err


def test_a_login_that_may_not_write(hub, tmp_path, capsys) -> None:
    folder = exported("mat", tmp_path / "out")
    for status, code, said in (
        (-1, 2, "you are not logged in at the hub: `hf auth login`"),
        (403, 2, f"the hub refuses {NAME} (HTTP 403): log in with `hf auth login`"),
        (500, 1, "the hub answers: 500 of the folder"),
    ):
        hub.refuses = status
        assert main(["push", str(folder), NAME]) == code
        assert said in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached(hub, tmp_path, monkeypatch, capsys) -> None:
    def no_net(**arguments):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(hub, "repo_info", no_net)
    assert main(["evaluate", "hub:a/b", "--track", "digits-ipc10"]) == 1
    assert "error: the hub cannot be reached (no route to host)" in capsys.readouterr().err


COPIES = OverlapInfo(
    images=30, exact_test=0, near_test=0, exact_train=0, near_train=2, closest_test=0.5
)
NONE = COPIES.model_copy(update={"near_train": 0})


@pytest.mark.parametrize(
    ("method", "overlap", "sharing", "outcome"),
    [
        ("random", NONE, "forbidden", "the set holds images"),
        ("mat", COPIES, "forbidden", "the set holds images"),
        ("mat", None, "forbidden", "the set may hold, for all that its record says, images"),
        ("mat", NONE, "forbidden", []),
        ("random", NONE, "unstated", ["the set holds images"]),
        ("mat", None, "unstated", ["the set may hold images"]),
        ("random", NONE, "allowed", []),
    ],
)
def test_images_of_a_dataset_go_up_only_where_its_terms_let_them(
    method, overlap, sharing, outcome, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(pushing, "terms_of", lambda loader: Terms(sharing, "as its page says"))
    record = example(method).record.model_copy(update={"overlap": overlap})
    if isinstance(outcome, str):
        with pytest.raises(UsageError, match=rf"{outcome} of digits \(its terms: as its page"):
            pushing._about_images(record, registry())
        return
    notes = pushing._about_images(record, registry())
    assert len(notes) == len(outcome)
    assert all(note.startswith(start) for note, start in zip(notes, outcome, strict=True))


def test_every_dataset_says_its_terms() -> None:
    found = {name: terms_of(entry.load()) for name, entry in registry().entries["datasets"].items()}
    assert [name for name, terms in found.items() if terms is UNKNOWN] == ["folder"]
    assert found["tiny-imagenet"] == found["imagewoof"] == IMAGENET


def test_methods_that_keep_training_images_say_so(tmp_path) -> None:
    methods = registry().entries["distillers"]
    keep = {name for name, entry in methods.items() if getattr(entry.load(), "real_images", False)}
    assert keep == {"random", "full", "k-centre", "herding", "random-robust-labels", "rded"}
    plan = plan_upload(exported("random", tmp_path / "out"), NAME, registry())
    assert plan.notes == (), "digits may be passed on"
