"""Hostile submissions: what each does to the folder of an honest run, and why it is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import torch
from publishing import copied, forged, renamed, reseeded
from small_runs import example

from robustdd_bench.distillers import DistilledSet
from robustdd_bench.files import json_text
from robustdd_bench.records.record import write_record
from robustdd_bench.records.set_info import set_info

SET = "distilled.safetensors"
PREVIEW = "distilled.png"
EVIL = "<script>alert(1)</script>"


def edit(folder: Path, change, *, sign: bool = True) -> None:
    """Edit the record as JSON; sign it again as a forger would."""
    path = folder / "record.json"
    fields = json.loads(path.read_text())
    change(fields)
    if sign:
        signed = {k: v for k, v in fields.items() if k not in ("costs", "results_sha256")}
        text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
        fields["results_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(fields))


def set_key(*keys, value):
    def change(fields):
        for key in keys[:-1]:
            fields = fields[key]
        fields[keys[-1]] = value

    return change


def replaced(folder: Path, record, method: str = "mtt") -> None:
    """Put a forged run in the place of the honest one."""
    root = folder.parents[2]
    shutil.rmtree(folder)
    copied(root, record, method)


def other_set(folder: Path, **changes) -> None:
    """Change the set; the record speaks of what it has become, as far as a record can."""
    record = example("mtt").record
    found = replace(DistilledSet.load(folder / SET), **changes)
    if torch.isfinite(found.images).all():
        said = set_info(found, record.data.num_classes)
    else:
        said = record.distilled.model_copy(update={"sha256": found.sha256()})
    write_record(folder / "record.json", forged(record, distilled=said))
    found.save(folder / SET)


def header(folder: Path, tensors: dict, data: bytes) -> None:
    """Write a file of safetensors by hand."""
    text = json.dumps(tensors).encode()
    (folder / SET).write_bytes(struct.pack("<Q", len(text)) + text + data)


def raw_header(folder: Path) -> tuple[dict, bytes]:
    content = (folder / SET).read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def claims(folder: Path, **entry) -> None:
    found, data = raw_header(folder)
    found["images"] |= entry
    header(folder, found, data)


def overlapping(folder: Path) -> None:
    found, data = raw_header(folder)
    start = found["images"]["data_offsets"][0]
    assert start > 0
    found["images"]["data_offsets"] = [at - start for at in found["images"]["data_offsets"]]
    header(folder, found, data)


def out_of_range(folder: Path) -> None:
    found, data = raw_header(folder)
    found["images"]["data_offsets"] = [offset + 64 for offset in found["images"]["data_offsets"]]
    header(folder, found, data)


def sparse(folder: Path) -> None:
    with (folder / SET).open("r+b") as file:
        file.truncate(100 * 2**30)


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def picture(folder: Path, *, before: bytes = b"", pixels: bytes | None = None, after=b"") -> None:
    """The preview with more chunks, other pixels or something behind it."""
    content = (folder / PREVIEW).read_bytes()
    start = 8 + 25  # the signature and the header
    body = content[start:] if pixels is None else chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (folder / PREVIEW).write_bytes(content[:start] + before + body + after)


def write(name: str, content: str | bytes):
    def change(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)

    return change


def in_text(old: str, new: str):
    def change(folder: Path) -> None:
        path = folder / "record.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def linked(folder: Path) -> None:
    (folder / PREVIEW).unlink()
    (folder / PREVIEW).symlink_to("/etc/passwd")


def failed_flag(folder: Path) -> None:
    record = example("mtt").record
    flag = record.flags[0].model_copy(update={"passed": False})
    replaced(folder, forged(record, flags=(flag, *record.flags[1:])))


def on_track(folder: Path, **changes) -> None:
    record = example("mtt").record
    replaced(folder, forged(record, track=record.track.model_copy(update=changes)))


def published_one(folder: Path) -> Path:
    return folder.parents[1] / "random" / example("random").record.run_id


def soft_rows(folder: Path) -> None:
    labels = torch.nn.functional.one_hot(DistilledSet.load(folder / SET).labels).float()
    other_set(folder, labels=labels * 2)


def nan(folder: Path) -> None:
    images = DistilledSet.load(folder / SET).images.clone()
    images[0, 0, 0, 0] = torch.nan
    other_set(folder, images=images)


def easier(folder: Path) -> None:
    record = example("mtt").record
    on_track(folder, students=record.track.students.model_copy(update={"epochs": 99}))


def bomb(folder: Path) -> None:
    picture(folder, pixels=zlib.compress(bytes(2**24), 9))


def nested(folder: Path) -> None:
    in_text('"config": {', '"config": {"deep": ' + "[" * 10**5 + "]" * 10**5 + ", ")(folder)


HOSTILE = {
    "pickle under the name of safetensors": (
        write(SET, pickle.dumps({"images": [0.0] * 999})),
        f"{SET} is not a safetensors file with a header of its size",
    ),
    "pickle beside": (
        write("weights.pt", pickle.dumps([1])),
        "weights.pt: a published run has no such file, only distilled.png",
    ),
    "witnesses beside": (write("witnesses.safetensors", b""), "a published run has no such file"),
    "html in the name of the method": (
        lambda f: edit(f, set_key("method", "name", value=EVIL)),
        "is not a valid record: method.name",
    ),
    "html in the plugin": (
        lambda f: replaced(f, renamed(example("mtt").record, "mine", plugin=EVIL)),
        "method.plugin: a tag of HTML",
    ),
    "html in the submission": (
        write("submission.json", json_text({"by": EVIL})),
        "submission.json is not a valid submission: by: a tag of HTML",
    ),
    "html in the summary of the track": (
        lambda f: on_track(f, summary=EVIL),
        "track.summary: a tag of HTML",
    ),
    "path in the name of the track": (
        lambda f: edit(f, set_key("track", "name", value="../../x")),
        "is not a valid record: track.name",
    ),
    "path in the name of the method": (
        lambda f: edit(f, set_key("method", "name", value="../../x")),
        "is not a valid record: method.name",
    ),
    "path in the run id": (
        lambda f: edit(f, set_key("run_id", value="../../../../x")),
        "is not a valid record: run_id",
    ),
    "record of another place": (
        lambda f: shutil.move(f, f.with_name("0" * 12)),
        "its record belongs under leaderboard/results/fast/mtt/",
    ),
    "header of a terabyte": (
        write(SET, struct.pack("<Q", 2**40) + b"{}"),
        "not a safetensors file with a header of its size",
    ),
    "tensor of a terabyte": (
        lambda f: claims(f, shape=[2**30, 1, 8, 8]),
        "does not hold the tensors the record speaks of",
    ),
    "tensors of another type": (lambda f: claims(f, dtype="F64"), "images F64 [20, 1, 8, 8]"),
    "more tensors": (
        lambda f: header(f, raw_header(f)[0] | {"x": {"dtype": "F32"}}, raw_header(f)[1]),
        "does not hold the tensors",
    ),
    "a header that is no object": (
        lambda f: header(f, [1], raw_header(f)[1]),
        "its header names none",
    ),
    "overlapping tensors": (overlapping, "is not a readable safetensors file"),
    "tensors beyond the file": (out_of_range, "is not a readable safetensors file"),
    "sparse file of 100 GiB": (sparse, f"{SET}: it has 100 GiB; up to 1.0 GiB are read"),
    "set cut short": (
        lambda f: write(SET, (f / SET).read_bytes()[:-4])(f),
        f"{SET} is damaged: it has ",
    ),
    "record of images without end": (
        lambda f: edit(f, set_key("data", "shape", value=[3, 2**20, 2**20])),
        "the record speaks of",
    ),
    "nan in the images": (nan, "the distilled images hold NaN or infinity"),
    "soft labels that are no distributions": (soft_rows, "must be a distribution over classes"),
    "hash of another set": (
        lambda f: write(SET, (published_one(f) / SET).read_bytes())(f),
        f"{SET}",
    ),
    "hash of another track": (
        lambda f: edit(f, set_key("track_sha256", value="0" * 64)),
        "track_sha256 is not the hash of the track",
    ),
    "edited record": (
        lambda f: edit(f, set_key("students", 0, "final_loss", value=0.0), sign=False),
        "results_sha256 is not the hash of the results: the record was edited",
    ),
    "edited aggregates, signed again": (
        lambda f: edit(f, set_key("aggregates", "headline", "mean", value=0.99)),
        "the aggregates are not those of the raw outcomes",
    ),
    "copy under another name": (
        lambda f: replaced(f, renamed(example("random").record, "mine"), "random"),
        "the images of mine (seed 0",
    ),
    "copy under another seed": (
        lambda f: replaced(f, reseeded(example("random").record, 5), "random"),
        "the students of random (seed 5",
    ),
    "unknown key in the record": (
        lambda f: edit(f, set_key("method", "extra", value=1)),
        "method.extra: Extra inputs are not permitted",
    ),
    "unknown key in the submission": (
        write("submission.json", '{"by": "me", "rank": 1}'),
        "rank: Extra inputs are not permitted",
    ),
    "key twice in the record": (
        in_text('"seed": 0', '"seed": 1, "seed": 0'),
        "key 'seed' stands there twice",
    ),
    "key twice in the submission": (
        write("submission.json", '{"by": "me", "by": "you"}'),
        "key 'by' stands there twice",
    ),
    "deep nesting": (nested, "record.json is not readable JSON"),
    "number of 30 digits": (
        lambda f: replaced(f, reseeded(example("mtt").record, 10**30)),
        "seed: a number beyond 64 bits",
    ),
    "number of 10000 digits": (
        in_text('"seed": 0', f'"seed": {"9" * 10**4}'),
        "record.json is not readable JSON",
    ),
    "nan in the record": (in_text('"seed": 0', '"seed": NaN'), "NaN is not allowed"),
    "infinity in the record": (in_text('"seed": 0', '"seed": 1e999'), "a number is too large"),
    "symbolic link": (linked, f"{PREVIEW}: it is a symbolic link, not a plain file"),
    "executable file": (
        lambda f: (f / "record.json").chmod(0o755),
        "record.json: it is an executable file",
    ),
    "fifo": (
        lambda f: os.mkfifo(f / "submission.json"),
        "submission.json: it is no file, not a plain file",
    ),
    "folder in the run": (
        lambda f: (f / "more").mkdir() or write("more/record.json", "{}")(f),
        "more/record.json: a submission adds runs",
    ),
    "file beside the results": (
        write("../../../../conftest.py", "raise SystemExit"),
        "leaderboard/conftest.py: a submission adds runs",
    ),
    "published record changed": (
        lambda f: edit(published_one(f), set_key("seed", value=3)),
        "record.json: it was changed: a published run stays as it is",
    ),
    "published run deleted": (
        lambda f: shutil.rmtree(published_one(f)),
        "record.json: it was deleted: a published run stays as it is",
    ),
    "published run claimed": (
        lambda f: write("submission.json", '{"by": "me"}')(published_one(f)),
        "submission.json: it was added to: a published run stays as it is",
    ),
    "easier track of the same name and version": (
        easier,
        "is not the protocol that is installed as fast@1: students differ",
    ),
    "track that nobody knows": (
        lambda f: on_track(f, name="mine"),
        "its track mine is not installed",
    ),
    "validation split": (
        lambda f: replaced(f, forged(example("mtt").record, split="validation")),
        "it was evaluated on a validation split",
    ),
    "failed check": (failed_flag, "sanity checks failed: "),
    "control character": (
        lambda f: replaced(f, renamed(example("mtt").record, "mine", version="1\x1b[2J")),
        "method.version: a control or direction character",
    ),
    "text that turns round": (
        write("submission.json", json_text({"licence": "MIT", "by": "\u202eevil"})),
        "submission.json is not a valid submission: by",
    ),
    "hidden soft hyphen": (
        write("submission.json", json_text({"by": "ad\u00admin"})),
        "by: a control or direction character",
    ),
    "bytes that are no text": (
        write("record.json", b"\xff\xfe{}"),
        "record.json is not readable JSON",
    ),
    "record that is a list": (write("record.json", "[]"), "it has no schema_version"),
    "no record": (lambda f: (f / "record.json").unlink(), "no file record.json"),
    "no set": (lambda f: (f / SET).unlink(), f"{SET} is missing"),
    "no preview": (lambda f: (f / PREVIEW).unlink(), f"{PREVIEW} is missing"),
    "preview that is a page": (write(PREVIEW, f"<html>{EVIL}"), f"{PREVIEW} is not a PNG"),
    "preview that is a bomb": (bomb, f"{PREVIEW} unpacks to more than"),
    "preview with a text": (
        lambda f: picture(f, before=chunk(b"tEXt", b"Comment\0hello")),
        f"{PREVIEW} holds more than an image: a chunk b'tEXt'",
    ),
    "preview with something behind": (
        lambda f: picture(f, after=b"PK\x03\x04"),
        f"{PREVIEW} goes on after its end",
    ),
    "preview of another size": (
        lambda f: write(
            PREVIEW, (published_one(f).parents[1] / "full" / _full() / PREVIEW).read_bytes()
        )(f),
        f"{PREVIEW} is not an RGB picture of",
    ),
    "preview of another set": (
        lambda f: write(PREVIEW, (published_one(f) / PREVIEW).read_bytes())(f),
        f"{PREVIEW} is not a picture of the set",
    ),
    "preview without an end": (
        lambda f: write(PREVIEW, (f / PREVIEW).read_bytes()[:-12])(f),
        f"{PREVIEW} is not a whole PNG",
    ),
    "preview that was tampered with": (
        lambda f: write(
            PREVIEW, (f / PREVIEW).read_bytes()[:60] + b"\0" + (f / PREVIEW).read_bytes()[61:]
        )(f),
        f"{PREVIEW} is damaged: a chunk has another checksum",
    ),
    "javascript for a link": (
        write("submission.json", '{"link": "javascript:alert(1)"}'),
        "link: String should match pattern",
    ),
    "page with another script": (
        write("../../../../index.html", f"<html>{EVIL}"),
        "leaderboard/index.html: it is not what the records make",
    ),
    "tables with other figures": (
        write("../../../../leaderboard.json", "{}"),
        "leaderboard/leaderboard.json: it is not what the records make",
    ),
    "tables deleted": (
        lambda f: (f.parents[3] / "index.html").unlink(),
        "leaderboard/index.html: it was deleted",
    ),
    "reported figures with html": (
        lambda f: (
            (f.parents[3] / "reported").mkdir()
            or write(
                "../../../../reported/mine.json",
                json_text(
                    {
                        "title": EVIL,
                        "link": "https://a.org/x",
                        "figures": [{"method": "m", "dataset": "d", "ipc": 1, "clean": 0.5}],
                    }
                ),
            )(f)
        ),
        "mine.json is not a file of reported figures: title: a tag of HTML",
    ),
    "reported figures that are none": (
        lambda f: (
            (f.parents[3] / "reported").mkdir() or write("../../../../reported/mine.json", "{}")(f)
        ),
        "leaderboard/reported: mine.json is not a file of reported figures: title",
    ),
}


def _full() -> str:
    return example("full").record.run_id
