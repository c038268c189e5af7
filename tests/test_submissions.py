"""Submissions by pull request: an honest one passes, each hostile one is refused for its reason."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hostile import EVIL, HOSTILE, PREVIEW, SET, published_one, replaced, sparse, write
from publishing import copied, forged, installed, renamed, reseeded
from small_runs import example

from robustdd_bench.board.admission.tensors import read_set
from robustdd_bench.board.build import build, publish_and_build
from robustdd_bench.board.publish import published
from robustdd_bench.board.pull_requests import check as submissions
from robustdd_bench.board.pull_requests.check import (
    README,
    RESULTS,
    SubmissionReport,
    check_folders,
    check_revisions,
)
from robustdd_bench.board.views.readme import with_front, with_section
from robustdd_bench.errors import UsageError
from robustdd_bench.files import write_json

SCRIPT = Path(__file__).parent.parent / "scripts" / "check_submission.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A board with two published runs."""
    root = tmp_path_factory.mktemp("base") / "leaderboard"
    for method in ("random", "full"):
        publish_and_build(example(method).folder, root, installed())
    (root / ".lock").unlink()
    return root


@pytest.fixture(scope="module")
def honest(base, tmp_path_factory) -> Path:
    """The board of an honest submission: one more run."""
    root = tmp_path_factory.mktemp("honest") / "leaderboard"
    shutil.copytree(base, root)
    publish_and_build(example("mtt").folder, root, installed())
    (root / ".lock").unlink()
    return root


@pytest.fixture
def new(honest, tmp_path) -> Path:
    """A copy of the honest submission's board, to be bent."""
    return shutil.copytree(honest, tmp_path / "leaderboard")


@pytest.fixture
def folder(new) -> Path:
    """The folder of the new run; the tables are those of the board before."""
    return new / "results" / "fast" / "mtt" / example("mtt").record.run_id


def check(new: Path, base: Path) -> SubmissionReport:
    return check_folders(new, base, installed())


def lines(report: SubmissionReport) -> str:
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


def test_the_page_of_a_new_run_may_come_with_it_and_no_other_may(new, base, folder) -> None:
    page = new / "runs" / f"{folder.name}.html"
    assert page.is_file()
    assert check(new, base).refused == []
    (new / "runs" / "0123456789ab.html").write_text("<p>bought</p>")
    page.write_text(page.read_text().replace("seed 0", "seed zero"))
    old = next(path for path in sorted((base / "runs").iterdir()))
    (new / "runs" / old.name).unlink()
    assert (
        lines(check(new, base))
        .splitlines()[0]
        .startswith(f"leaderboard/runs/{old.name}: it was deleted")
    )
    shutil.copyfile(old, new / "runs" / old.name)
    said = lines(check(new, base))
    assert (
        "leaderboard/runs/0123456789ab.html: it is the page of a run that is not published" in said
    )
    assert f"leaderboard/runs/{page.name}: it is not what the records make" in said


def test_what_changes_nothing_is_no_submission(base) -> None:
    report = check(base, base)
    assert (report.refused, report.runs) == ([], [])
    assert "this is no submission" in report.notes[0]


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


@pytest.mark.parametrize(
    ("limit", "line"),
    [("MAX_CHANGES", "files changed; up to 1 are"), ("MAX_TOTAL", "too many for one")],
)
def test_more_than_anyone_would_send_is_not_looked_at(
    limit, line, new, base, folder, monkeypatch
) -> None:
    monkeypatch.setattr(submissions, limit, 1)
    (folder / "record.json").write_text("not even read")
    report = check(new, base)
    assert line in lines(report)
    assert len(report.refused) == 1


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
    (found.folder / "docs").mkdir()
    for page, mark in ((README, "front"), (RESULTS, "board")):
        text = f"# A board\n\n<!-- begin {mark} -->\n<!-- end {mark} -->\n\nThe end.\n"
        (found.folder / page).write_text(text)
    write_pages(found.folder, board)
    (found.folder / "code.py").write_text("x = 1\n")
    found.commit()
    found.git("checkout", "-qb", "submission")
    shutil.copytree(new, board, dirs_exist_ok=True)
    write_pages(found.folder, board)
    found.commit()
    return found


def write_pages(root, board) -> None:
    """Fill the pages that are made of a board, as scripts/generate.py does."""
    for page, fill in ((README, with_front), (RESULTS, with_section)):
        path = root / page
        path.write_text(fill(path.read_text(), published(board), board))


def against_main(repository: Repository) -> SubmissionReport:
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
    examples = example("mtt").record.data.evaluation_examples
    assert f"    robustdd verify {where} --students 1 --examples {examples}\n" in out
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
    code, out, _ = script("--board", str(new), "--base", str(base))
    assert code == 0
    assert "nothing speaks against it" in out
