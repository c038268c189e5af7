"""Hooks of mkdocs: what the site holds beyond docs/, and what keeps it from loading anything.

mkdocs calls the functions `on_*` (mkdocs.yml names this file). The sources read the same on a code
host: their links are relative to where they lie in the repository. Here a link to a file that is a
page of the site becomes a link to that page, any other one leads to the repository.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Pages whose source lies outside docs/: page of the site -> file of the repository.
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "gpu.md": "benchmarks/gpu/README.md",
    "examples/robustdd-mean.md": "examples/robustdd-mean/README.md",
    "examples/robustdd-corners.md": "examples/robustdd-corners/README.md",
    "notebooks/first-run.md": "examples/notebooks/first-run.ipynb",
    "notebooks/set-of-another-paper.md": "examples/notebooks/set-of-another-paper.ipynb",
}
# Files and folders that are copied as they are: place in the site and in the repository.
COPIED = tuple(
    f"leaderboard/{name}" for name in ("index.html", "leaderboard.json", "results", "runs")
)
SCHEMAS = ("leaderboard/record.schema.json", "leaderboard/leaderboard.schema.json")

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'"
)
"""What a page may load: files of the site."""

# The theme's script would ask these hosts in cases that do not arise here; it is kept from it.
HOSTS = ("https://unpkg.com/", "https://api.github.com/", "https://gitlab.com/")

_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()([^()\s]+)(\))")
_FENCE = re.compile(r"^( *)(```|~~~)")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:|//|#", re.IGNORECASE)


def project() -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(table["project"])


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """The text with every line changed that is no code; code in a list moves with its list."""
    lines, fence, shift = [], "", ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if fence:
            lines.append(shift + line if line else line)
            fence = "" if found and found[2] == fence else fence
        elif found:
            fence, moved = found[2], _nested(line)
            shift = " " * (len(moved) - len(line))
            lines.append(moved)
        else:
            lines.append(change(line))
    return "\n".join(lines)


def _nested(line: str) -> str:
    """The line of a list in a list: a code host takes 2 or 3 spaces, mkdocs asks for 4."""
    return re.sub(r"^ {2,3}(?=\S)", "    ", line)


def site_text(text: str, source: str, page: str, repository: str) -> str:
    """The Markdown of a page of the site.

    Args:
        text: the Markdown as it is in the repository.
        source: where it lies there.
        page: its name in the site, "extend/attack.md".
        repository: the repository's address.
    """

    def link(found: re.Match[str]) -> str:
        target = found[2]
        if _SCHEME.match(target):
            return found[0]
        return f"{found[1]}{site_link(target, source, page, repository)}{found[3]}"

    return outside_fences(text, lambda line: _nested(_LINK.sub(link, line)))


def site_link(target: str, source: str, page: str, repository: str) -> str:
    """Where a relative link of a file in the repository leads in the site."""
    path, mark, fragment = target.partition("#")
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    found = place_in_site(inside)
    if found is None:
        kind = "tree" if (ROOT / inside).is_dir() else "blob"
        return f"{repository}/{kind}/main/{inside}{mark}{fragment}"
    return posixpath.relpath(found, posixpath.dirname(page) or ".") + mark + fragment


def place_in_site(path: str) -> str | None:
    """Where a file of the repository is in the site; None where it is not."""
    for page, source in PAGES.items():
        if path == source:
            return page
    if any(path == part or path.startswith(f"{part}/") for part in (*COPIED, *SCHEMAS)):
        return path
    folder, _, rest = path.partition("/")
    return rest if folder == "docs" and rest and (ROOT / path).is_file() else None


def notebook_text(content: str) -> str:
    """A notebook as Markdown: its text, and its code in fences."""
    cells = json.loads(content)["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def source_text(source: str) -> str:
    """A file of the repository as Markdown."""
    text = (ROOT / source).read_text(encoding="utf-8")
    return notebook_text(text) if source.endswith(".ipynb") else text


def with_notebook_link(text: str, source: str) -> str:
    """The page of a notebook, with a link to the notebook below its title."""
    name = posixpath.basename(source)
    title, _, rest = text.partition("\n\n")
    return f"{title}\n\nThis page is a notebook: [{name}]({name}). A test runs it.\n\n{rest}"


def without_hosts(script: str) -> str:
    """A script that asks for files beside the page where it would ask a host."""
    for host in HOSTS:
        script = script.replace(host, "./")
    return script


def with_policy(page: str) -> str:
    """A page that says what it may load, before it loads anything."""
    meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return page.replace("<head>", f"<head>{meta}", 1)


# --- what mkdocs calls ----------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """The repository's address comes from pyproject.toml."""
    config.repo_url = project()["urls"]["Repository"]
    config.repo_name = config.site_name
    config.site_url = project()["urls"]["Documentation"].rstrip("/") + "/"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and files that lie outside docs/."""
    from mkdocs.structure.files import File

    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=source_text(source)))
        if source.endswith(".ipynb"):
            beside = posixpath.join(posixpath.dirname(page), posixpath.basename(source))
            files.append(File.generated(config, beside, abs_src_path=str(ROOT / source)))
    for path in _copied_files():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def _copied_files() -> Iterable[str]:
    for part in (*COPIED, *SCHEMAS):
        path = ROOT / part
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (one.relative_to(ROOT).as_posix() for one in found if one.is_file())


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Links and lists as the site has them."""
    name = page.file.src_uri
    source = PAGES.get(name, f"docs/{name}")
    text = site_text(markdown, source, name, config.repo_url.rstrip("/"))
    return with_notebook_link(text, source) if source.endswith(".ipynb") else text


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Each page says what it may load."""
    return with_policy(output)


def on_post_template(output: str, *, template_name: str, config: Any) -> str:
    """So does the page of what is not found."""
    return with_policy(output) if template_name.endswith(".html") else output


def on_post_build(*, config: Any) -> None:
    """The theme's scripts ask nobody; maps of scripts, for their authors, are left out."""
    site = Path(config.site_dir)
    for path in (site / "assets" / "javascripts").rglob("*.js"):
        text = path.read_text(encoding="utf-8")
        changed = without_hosts(text)
        if changed != text:
            path.write_text(changed, encoding="utf-8")
    for path in site.joinpath("assets").rglob("*.map"):
        path.unlink()
    shutil.rmtree(site / "assets" / "javascripts" / "lunr", ignore_errors=True)  # other languages
