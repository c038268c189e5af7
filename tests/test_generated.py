"""Generated files are what the code says now."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def generate(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate.py", *args],
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_generated_file_is_stale() -> None:
    result = generate("--check")
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """An empty repository after `scripts/generate.py`."""
    root = tmp_path_factory.mktemp("repository")
    return root, generate("--root", str(root))


def test_missing_files_are_written_and_named(
    written: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, result = written
    assert result.returncode == 0
    for name in result.stdout.split():
        found, committed = (root / name).read_text(), (ROOT / name).read_text()
        if name.endswith(".schema.json"):
            # Another version of pydantic words the same schema otherwise.
            found, committed = (sorted(json.loads(text)["$defs"]) for text in (found, committed))
        assert found == committed
    assert {"docs/cli.md", "docs/plugins.md"} <= set(result.stdout.split())


def test_a_stale_file_is_named_and_left_alone_by_the_check(
    written: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    root, _ = written
    (root / "docs" / "cli.md").write_text("old")
    result = generate("--check", "--root", str(root))
    assert result.returncode == 1
    assert result.stderr == "stale: docs/cli.md; run `make docs`\n"
    assert (root / "docs" / "cli.md").read_text() == "old"


def test_the_reference_has_every_command_and_option() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for part in ("## robustdd run\n", "## robustdd show track\n", "`--json`: Print JSON."):
        assert part in text


def test_a_table_row_for_every_shipped_method() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    assert "| `mat` | `mat` |" in text
    assert "| `pgd` | `attacks` |" in text
