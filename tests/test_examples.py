"""The tutorial plugins are real packages: they are installed into an environment and used there."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if (path / "tests").is_dir())


def _call(python: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Whatever this process was told about paths and plugins is not the environment's business.
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "PYTHON", "ROBUSTDD_DISABLED"))
    }
    return subprocess.run(
        [str(python), *args],
        cwd=cwd,
        env=env | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that sees all of this one, and the examples besides."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", symlinks=os.name != "nt")
    names = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    scheme = "venv" if "venv" in sysconfig.get_scheme_names() else None
    paths = sysconfig.get_paths(scheme, vars=names) if scheme else sysconfig.get_paths(vars=names)
    # addsitedir also reads the .pth files there, by which robustdd_bench is installed editable.
    ours = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    lines = [f"import site; site.addsitedir({path!r})\n" for path in ours]
    Path(paths["purelib"], "all_of_the_other.pth").write_text("".join(lines), encoding="utf-8")
    program = Path(paths["scripts"], "python.exe" if os.name == "nt" else "python")
    copies = []
    for example in EXAMPLES:  # copies, because a build writes into the source folder
        ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        shutil.copytree(example, folder / example.name, ignore=ignored)
        copies.append(str(folder / example.name))
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    installed = _call(program, "-m", "pip", "install", "--quiet", *offline, *copies, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return program


def test_there_is_a_method_and_an_attack_among_the_examples() -> None:
    assert [path.name for path in EXAMPLES] == ["robustdd-corners", "robustdd-mean"]


def test_installed_examples_are_found_and_registered_without_torch(
    python: Path, tmp_path: Path
) -> None:
    code = (
        "import json, sys\n"
        "from robustdd_bench.plugins import collect, get_plugin_manager\n"
        "registry = collect(get_plugin_manager())\n"
        "entries = registry.get('distillers', 'mean'), registry.get('attacks', 'corners')\n"
        "plugins = [registry.plugins[entry.plugin] for entry in entries]\n"
        "found = [[p.distribution, p.version, p.status] for p in plugins]\n"
        "print(json.dumps({'found': found, 'torch': 'torch' in sys.modules}))\n"
    )
    result = _call(python, "-W", "error", "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "found": [["robustdd-mean", "0.1.0", "loaded"], ["robustdd-corners", "0.1.0", "loaded"]],
        "torch": False,
    }


def test_the_examples_pass_their_own_tests_and_the_checks_of_the_benchmark(
    python: Path, tmp_path: Path
) -> None:
    for example in EXAMPLES:
        shutil.copytree(example / "tests", tmp_path / example.name)
    result = _call(python, "-m", "pytest", "-q", "-W", "error", str(tmp_path), cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= 10


def test_an_installed_method_is_run_by_its_name(python: Path, tmp_path: Path) -> None:
    track = Path(__file__).parent / "data" / "fast.toml"
    args = ("run", "--method", "mean", "--track", str(track), "--device", "cpu", "--threads", "1")
    out = tmp_path / "runs"
    result = _call(python, "-m", "robustdd_bench", *args, "--out", str(out), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert any(out.rglob("*.safetensors"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_stays_about_twenty_lines(example: Path) -> None:
    """Counted are statements: no imports, blank lines, comments or docstrings."""
    lines: set[tuple[str, int]] = set()
    for path in example.glob("robustdd_*/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_import = isinstance(node, ast.Import | ast.ImportFrom)
            if isinstance(node, ast.stmt) and not is_text and not is_import:
                lines.add((path.name, node.lineno))
    assert 10 <= len(lines) <= 25


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_tutorial_quotes_the_code_as_it_is(example: Path) -> None:
    text = (example / "README.md").read_text(encoding="utf-8")
    files = [*example.glob("*.toml"), *example.glob("robustdd_*/*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    flat = " ".join(code.split())
    for quoted in re.findall(r"`([^`]+)`", text):
        if "(" in quoted and "=" not in quoted and "..." not in quoted:
            assert quoted in flat, quoted
    for block in re.findall(r"(?:^    .+\n)+", text, re.MULTILINE):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if lines[0].startswith(("pip", "[[attacks]]")):
            continue
        for line in lines:
            assert line in code, line


def test_the_method_of_the_readme_makes_a_set(tmp_path) -> None:
    from tasks import RecordingReporter, digits_task

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(part for part in text.split("```python\n")[1:] if "class Mine" in part)
    names: dict = {}
    exec(code.partition("```")[0], names)
    made = names["Mine"](names["Mine"].Config()).distill(digits_task(tmp_path), RecordingReporter())
    made.check((1, 8, 8), 4, 2)
    assert len(made) == 8
