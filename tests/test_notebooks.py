"""The notebooks are stored without outputs, and run from top to bottom in a kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))

# In a process of its own: the kernel's libraries warn of themselves, and here warnings are errors.
EXECUTE = """
import sys, nbclient, nbformat
book = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(book, timeout=600, kernel_name="python3").execute()
nbformat.write(book, sys.argv[1])
"""


def text(book: nbformat.NotebookNode) -> list[str]:
    """What each cell of code shows, as text."""
    shown = []
    for cell in book.cells:
        if cell.cell_type == "code":
            parts = [
                output.get("text")
                or output["data"].get("text/markdown", "")
                or output["data"].get("text/plain", "")
                for output in cell.outputs
            ]
            shown.append("".join(parts))
    return shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(code) >= 6
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert set(book.metadata) == {"kernelspec", "language_info"}
    assert (
        path.read_text(encoding="utf-8")
        == json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=1, ensure_ascii=False)
        + "\n"
    )


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the cells of each notebook show, by the notebook's name; they share their runs."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("notebooks", "tracks"):
        ignored = shutil.ignore_patterns("runs", "data", ".ipynb_checkpoints")
        shutil.copytree(ROOT / "examples" / name, folder / name, ignore=ignored)
    found = {}
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        done = subprocess.run(
            [sys.executable, "-c", EXECUTE, path.name],
            cwd=path.parent,
            env=os.environ | {"IPYTHONDIR": str(folder / "ipython"), "ROBUSTDD_JOBS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[path.stem] = text(nbformat.read(path, as_version=4))
    assert found.keys() == {path.stem for path in NOTEBOOKS}
    return found


def test_the_first_run_shows_tables_pictures_and_robust_accuracy(executed) -> None:
    shown = executed["first-run"]
    assert "| random | 50 |" in shown[1]
    assert shown[2] == "True"
    assert "| k-means | 50 |" in shown[3]
    assert [part for part in shown if part.startswith("<Figure")] == [shown[4], shown[5]]
    assert 0.85 < float(shown[6]) <= 1
    robust = json.loads(shown[7].replace("{0.05", '{"0.05"').replace(" 0.1:", ' "0.1":'))
    assert float(shown[6]) >= robust["0.05"] > robust["0.1"] > 0.2


def test_a_foreign_set_is_judged_as_what_it_was_made_from(executed) -> None:
    shown = executed["set-of-another-paper"]
    assert (
        shown[2]
        == "format dc does not say the space of its images (--space: raw, normalised, zca)\n"
    )
    assert "'pixels_outside': 0.0" in shown[3]
    assert "| given | 50 |" in shown[4]
    assert "'format': 'dc'" in shown[5]
    given, random = json.loads(shown[6].replace("'", '"')).values()
    assert given != random
    assert min(given, random) > 0.2
