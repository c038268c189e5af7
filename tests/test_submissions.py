"""Submissions by pull request: an honest one passes, each hostile one is refused for its reason."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from publishing import copied, forged, installed, renamed, reseeded
from small_runs import example

from robustdd_bench.board.build import build, publish_and_build
from robustdd_bench.board.readme import BEGIN, END, with_section
from robustdd_bench.board.sets import read_set
from robustdd_bench.board.submissions import Report, check_folders, check_revisions
from robustdd_bench.distillers import DistilledSet
from robustdd_bench.errors import UsageError
from robustdd_bench.files import json_text, write_json
from robustdd_bench.runs.records import write_record
from robustdd_bench.runs.set_info import set_info

SCRIPT = Path(__file__).parent.parent / "scripts" / "check_submission.py"
SET = "distilled.safetensors"
PREVIEW = "distilled.png"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A board with two published runs."""
    root = tmp_path_factory.mktemp("base") / "leaderboard"
    for method in ("random", "full"):
        publish_and_build(example(method).folder, root, installed())
    return root


@pytest.fixture
def new(base, tmp_path) -> Path:
    """The board of an honest submission: one more run."""
    root = tmp_path / "leaderboard"
    shutil.copytree(base, root, ignore=shutil.ignore_patterns(".lock"))
    publish_and_build(example("mtt").folder, root, installed())
    (root / ".lock").unlink()
    return root


@pytest.fixture
def folder(new) -> Path:
    """The folder of the new run; the tables are those of the board before."""
    return new / "results" / "fast" / "mtt" / example("mtt").record.run_id


def check(new: Path, base: Path) -> Report:
    (base / ".lock").unlink(missing_ok=True)
    return check_folders(new, base, installed())


def lines(report: Report) -> str:
    """The reasons as a text, after a look at each of them."""
    assert report.refused
    for refusal in report.refused:
        line = f"{refusal.path}: {refusal.reason}"
        assert "\n" not in line
        assert "/tmp/" not in line
        assert "robustdd-submission." not in line
        assert all(character.isprintable() for character in line)
    return "\n".join(f"{one.path}: {one.reason}" for one in report.refused)


def test_an_honest_submission_passes(new, base, folder) -> None:
    write_json(folder / "submission.json", {"by": "A & B", "link": "https://a.org/x"})
    build(new)
    (new / ".lock").unlink()
    report = check(new, base)
    assert report.refused == []
    where = f"leaderboard/results/fast/mtt/{folder.name}"
    assert [run for run, _ in report.runs] == [where]
    assert report.notes == []


def test_tables_may_be_left_to_the_maintainer(new, base) -> None:
    for name in ("leaderboard.json", "index.html"):
        shutil.copyfile(base / name, new / name)
    report = check(new, base)
    assert report.refused == []
    assert [note.split()[0] for note in report.notes] == [
        "leaderboard/leaderboard.json",
        "leaderboard/index.html",
    ]


def test_what_changes_nothing_is_no_submission(base) -> None:
    report = check(base, base)
    assert (report.refused, report.runs) == ([], [])
    assert "this is no submission" in report.notes[0]


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


@pytest.mark.parametrize(("change", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_submission_is_refused(change, reason, new, base, folder) -> None:
    change(folder)
    assert reason in lines(check(new, base))


def test_every_reason_is_told_at_once(new, base, folder) -> None:
    write("weights.pt", b"")(folder)
    shutil.rmtree(published_one(folder))
    replaced(folder, forged(example("mtt").record, split="validation"))
    bad = next((new / "results/fast/mtt").iterdir())
    write(PREVIEW, "<html>")(bad)
    text = lines(check(new, base))
    for reason in ("it was deleted", "validation split", "is not a PNG"):
        assert reason in text


def test_two_names_for_one_set_within_a_submission_are_refused(new, base, folder) -> None:
    copied(folder.parents[2], renamed(example("mtt").record, "mine"), "mtt")
    text = lines(check(new, base))
    assert "mtt (seed 0, run " in text
    assert "mine (seed 0, run " in text
    assert "a run is on the board under one name" in text


def test_a_reference_comes_without_its_set(new, base, folder) -> None:
    record = example("full").record
    again = reseeded(record, 3)
    place = copied(folder.parents[2], again, "full")
    shutil.copyfile(example("full").folder / SET, place / SET)
    assert f"a reference is published without {SET}" in lines(check(new, base))


def test_a_set_is_measured_before_it_is_read(tmp_path, folder) -> None:
    sparse(folder)
    with pytest.raises(UsageError, match="is larger than the set the record speaks of: 100 GiB"):
        read_set(folder / SET, example("mtt").record)
    (folder / SET).unlink()
    (folder / SET).symlink_to(example("mtt").folder / SET)
    with pytest.raises(UsageError, match="cannot be read"):
        read_set(folder / SET, example("mtt").record)


def test_reported_figures_are_to_be_looked_at(new, base) -> None:
    figures = {"method": "m", "dataset": "d", "ipc": 1, "clean": 0.5}
    source = {"title": "A paper", "link": "https://a.org/x", "figures": [figures]}
    (new / "reported").mkdir()
    write_json(new / "reported" / "mine.json", source)
    build(new)
    (new / ".lock").unlink()
    report = check(new, base)
    assert report.refused == []
    assert report.notes == [
        "leaderboard/reported/mine.json: hold its figures against the source that it names"
    ]


def test_folders_that_are_none_are_a_wrong_call(tmp_path, base) -> None:
    with pytest.raises(UsageError, match="no folder"):
        check_folders(tmp_path / "gone", base, installed())
    with pytest.raises(UsageError, match="no folder"):
        check_folders(base, tmp_path / "gone", installed())


class Repository:
    """A clone in which a submission is a commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q", "-b", "main")
        self.git("config", "core.protectNTFS", "false")

    def git(self, *words: str, stdin: bytes | None = None) -> str:
        who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a"}
        who |= {"GIT_COMMITTER_EMAIL": "a", "GIT_CONFIG_GLOBAL": os.devnull}
        return (
            subprocess.run(
                ["git", "-C", str(self.folder), *words],
                env={**os.environ, **who},
                input=stdin,
                capture_output=True,
                check=True,
            )
            .stdout.decode()
            .strip()
        )

    def commit(self, *paths: str) -> None:
        self.git("add", "-A", *(paths or (".",)))
        self.git("commit", "-qm", "x")


@pytest.fixture
def repository(base, new, tmp_path) -> Repository:
    """Branch main with the board, and a branch with an honest submission."""
    found = Repository(tmp_path / "clone")
    board = found.folder / "leaderboard"
    shutil.copytree(base, board, ignore=shutil.ignore_patterns(".lock"))
    readme = found.folder / "README.md"
    readme.write_text(f"# A board\n\n{BEGIN}\n{END}\n\nThe end.\n")
    readme.write_text(with_section(readme.read_text(), board))
    (found.folder / "code.py").write_text("x = 1\n")
    found.commit()
    found.git("checkout", "-qb", "submission")
    shutil.copytree(new, board, dirs_exist_ok=True)
    readme.write_text(with_section(readme.read_text(), board))
    found.commit()
    return found


def against_main(repository: Repository) -> Report:
    return check_revisions(repository.folder, "HEAD", "main", installed())


def test_an_honest_submission_passes_as_a_commit(repository, folder) -> None:
    report = against_main(repository)
    assert report.refused == []
    assert report.notes == []
    assert [run for run, _ in report.runs] == [f"leaderboard/results/fast/mtt/{folder.name}"]
    # The branch it goes into has moved on since; that is not the submission's doing.
    repository.git("checkout", "-q", "main")
    (repository.folder / "code.py").write_text("x = 2\n")
    repository.commit()
    repository.git("checkout", "-q", "submission")
    assert against_main(repository).refused == []
    # What was merged meanwhile is published: the same run cannot come again.
    repository.git("checkout", "-q", "main")
    repository.git("checkout", "submission", "--", "leaderboard/results")
    repository.commit()
    repository.git("checkout", "-q", "submission")
    assert "it is published already" in lines(against_main(repository))


def test_code_and_other_files_of_a_submission_are_refused(repository) -> None:
    (repository.folder / "code.py").write_text("x = 3\n")
    (repository.folder / "setup.py").write_text("raise SystemExit\n")
    (repository.folder / ".gitattributes").write_text("* filter=evil\n")
    readme = repository.folder / "README.md"
    readme.write_text(readme.read_text().replace("The end.", f"The end. {EVIL}"))
    repository.commit()
    text = lines(against_main(repository))
    for name in ("code.py", "setup.py", ".gitattributes"):
        assert f"{name}: a submission adds runs" in text
    repository.git("checkout", "-q", "main", "--", "code.py")
    repository.git("rm", "-q", "setup.py", ".gitattributes")
    repository.commit()
    text = lines(against_main(repository))
    assert text == "README.md: it is not what the records make; run `make board`, edit nothing"


def test_names_and_modes_that_only_git_knows_are_refused(repository, folder) -> None:
    where = f"leaderboard/results/fast/mtt/{folder.name}"
    os.symlink("/etc", repository.folder / where / "link")
    (repository.folder / where / "record.json").chmod(0o755)
    name = os.fsencode(repository.folder / where) + b"/\xff\xe2\x80\xae.json"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    repository.commit()
    # A tree that climbs out of its folder, and a submodule.
    blob = repository.git("hash-object", "-w", "--stdin", stdin=b"owned")
    evil = b"100644 ..\0" + bytes.fromhex(blob)
    words = ("hash-object", "-t", "tree", "--literally", "-w", "--stdin")
    tree = repository.git(*words, stdin=evil)
    listing = repository.git("ls-tree", "HEAD")
    listing += f"\n040000 tree {tree}\tup\n160000 commit {'1' * 40}\tmodule\n"
    top = repository.git("mktree", "--missing", stdin=listing.encode())
    made = repository.git("commit-tree", top, "-p", "HEAD", "-m", "x")
    text = lines(check_revisions(repository.folder, made, "main", installed()))
    assert f"{where}/link: a published run has no such file" in text
    assert f"{where}/record.json: it is an executable file" in text
    assert "\\udcff\\u202e.json: a published run has no such file" in text
    assert "up/..: a submission adds runs" in text
    assert "module: a submission adds runs" in text


@pytest.fixture
def script(repository, monkeypatch, capsys):
    """A call of the script in the clone: exit code, stdout and stderr."""
    spec = importlib.util.spec_from_file_location("check_submission", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "collect", lambda _: installed())
    monkeypatch.chdir(repository.folder)

    def call(*words: str) -> tuple[int, str, str]:
        try:
            code = module.main(words)
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--against", "gone"], "has no revision 'gone'"),
        (["--against", "--output=x"], "expected one argument"),
        (["--output=x..HEAD"], "unrecognized arguments"),
        (["gone..HEAD"], "has no revision 'gone'"),
        (["--board", "x"], "--board and --base go together"),
        (["--repository", "/"], "git rev-parse in /: fatal: not a git repository"),
    ],
)
def test_wrong_calls_of_the_script_are_a_line(words, line, script) -> None:
    code, out, err = script(*words)
    assert code == 2
    assert line in err
    assert out == ""


def test_the_script_says_what_to_do_next_and_what_is_wrong(script, repository, folder) -> None:
    code, out, err = script()
    assert (code, err) == (0, "")
    where = f"leaderboard/results/fast/mtt/{folder.name}"
    assert f"run: {where}: seed 0, clean " in out
    assert f"robustdd verify {where} --students 1 --examples 500" in out
    write("weights.pt", b"")(repository.folder / where)
    repository.commit()
    code, out, _ = script("main..HEAD")
    assert code == 1
    assert f"refused: {where}/weights.pt: a published run has no such file" in out
    assert "refused for 1 reason\n" in out
    code, out, _ = script("main..HEAD", "--json")
    assert code == 1
    found = json.loads(out)
    assert [one["path"] for one in found["refused"]] == [f"{where}/weights.pt"]
    assert found["next"] == []


def test_two_boards_can_be_compared_without_git(script, new, base) -> None:
    (base / ".lock").unlink(missing_ok=True)
    code, out, _ = script("--board", str(new), "--base", str(base))
    assert code == 0
    assert "nothing speaks against it" in out
