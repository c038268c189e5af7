"""Generated files are what the code says now."""

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "generate.py"
Generate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def script():
    """The script as a module that makes each text once for all tests."""
    spec = importlib.util.spec_from_file_location("generate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.GENERATORS = {name: functools.cache(text) for name, text in module.GENERATORS.items()}
    return module


@pytest.fixture
def generate(script, monkeypatch: pytest.MonkeyPatch, capsys) -> Generate:
    def call(*args: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
        code = script.main()
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return call


def test_no_generated_file_is_stale(generate: Generate) -> None:
    result = generate("--check")
    assert result.returncode == 0, result.stderr


def test_missing_files_are_written_and_named_and_a_stale_one_is_left_alone_by_the_check(
    generate: Generate, tmp_path: Path
) -> None:
    result = generate("--root", str(tmp_path))
    assert result.returncode == 0
    for name in result.stdout.split():
        found, committed = (tmp_path / name).read_text(), (ROOT / name).read_text()
        if name.endswith(".schema.json"):
            # Another version of pydantic words the same schema otherwise.
            found, committed = (sorted(json.loads(text)["$defs"]) for text in (found, committed))
        assert found == committed
    assert {"docs/cli.md", "docs/plugins.md"} <= set(result.stdout.split())
    (tmp_path / "docs" / "cli.md").write_text("old")
    result = generate("--check", "--root", str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == "stale: docs/cli.md; run `make docs`\n"
    assert (tmp_path / "docs" / "cli.md").read_text() == "old"


def test_it_is_a_script_that_says_what_it_does() -> None:
    command = [sys.executable, SCRIPT, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--check" in result.stdout


def test_the_reference_has_every_command_and_option() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for part in ("## robustdd run\n", "## robustdd show track\n", "`--json`: Print JSON."):
        assert part in text


def test_a_table_row_for_every_shipped_method() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text()
    assert "| `mat` | `mat` |" in text
    assert "| `pgd` | `attacks` |" in text
