"""Is the built site whole, and does it load nothing from elsewhere?

    python scripts/check_site.py [site]

`make site` runs it. Every link inside the site has to lead to a file that is there, and its
fragment to an element. Pages, style sheets and scripts load nothing from another host: links that
a reader may follow are all that leads outside. Exit code 1 names every fault.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {"src", "srcset", "data", "poster", "background", "xlink:href", "formaction", "action"}
"""Attributes by which a page loads or sends something; `href` is one too, except of a link."""
FOLLOWED = {"a", "area"}
NAMED = {"canonical", "prev", "next", "alternate", "license", "author"}
"""Of `<link>`: what only names another page."""
OUTSIDE = re.compile(r"^\s*([a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
CSS_URL = re.compile(
    r"""(?:url\(\s*|@import\s+)["']?\s*((?:[a-z][a-z0-9+.-]*:)?//[^"')\s]+)""", re.I
)
SCRIPT_URL = re.compile(r"""["'`]((?:https?:|wss?:)?//[a-z0-9-]+\.[a-z][^"'`\s]*)""", re.I)
INERT = (
    "http://www.w3.org/",  # names of namespaces
    "https://clipboardjs.com/",
    "https://github.com/",
)
"""What scripts hold as text and do not load."""
SELF = "default-src 'self'"


class Page(HTMLParser):
    """What a page links, loads and can be linked at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.policy = ""
        self.canonical = ""
        self.styles: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what the tag's attributes say."""
        given = {name: value or "" for name, value in attrs}
        self._inside = tag
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if "style" in given:
            self.styles.append(given["style"])
        if tag == "meta" and given.get("http-equiv", "").lower() == "content-security-policy":
            self.policy = given["content"]
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.loaded.append(given["content"].partition("=")[2])
        if tag == "link" and given.get("rel") == "canonical":
            self.canonical = given.get("href", "")
        for name, value in given.items():
            if name == "href" and (
                tag in FOLLOWED or (tag == "link" and set(given.get("rel", "").split()) <= NAMED)
            ):
                self.links.append(value)
            elif name == "srcset":
                self.loaded += [part.split()[0] for part in value.split(",") if part.split()]
            elif name in LOADING or name == "href":
                self.loaded.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag without content holds no style and no script."""
        self.handle_starttag(tag, attrs)
        self._inside = ""

    def handle_endtag(self, tag: str) -> None:
        """Style and script end here."""
        self._inside = ""

    def handle_data(self, data: str) -> None:
        """Take what stands in a style or a script."""
        if self._inside == "style":
            self.styles.append(data)
        elif self._inside == "script":
            self.scripts.append(data)


def outside_css(text: str) -> list[str]:
    """What a style sheet loads from elsewhere."""
    return CSS_URL.findall(text)


def outside_script(text: str) -> list[str]:
    """Addresses in a script that it might ask."""
    return [url for url in SCRIPT_URL.findall(text) if not url.startswith(INERT)]


def problems(site: Path) -> Iterator[str]:
    """What is wrong with a built site, a line a fault."""
    pages = {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
    }
    if "index.html" not in pages:
        yield f"{site} holds no index.html"
        return
    # The page of what is not found is shown at any address, so its links begin at the site's own.
    base = posixpath.dirname(urlsplit(pages["index.html"].canonical).path).rstrip("/") + "/"
    for name in pages:
        yield from (f"{name}: {fault}" for fault in _faults(site, base, name, pages))
    for path in sorted(site.rglob("*.css")):
        where = path.relative_to(site).as_posix()
        yield from (f"{where}: loads {url}" for url in outside_css(path.read_text("utf-8")))
    for path in sorted(site.rglob("*.js")):
        where = path.relative_to(site).as_posix()
        yield from (f"{where}: may ask {url}" for url in outside_script(path.read_text("utf-8")))


def _faults(site: Path, base: str, name: str, pages: dict[str, Page]) -> Iterator[str]:
    page = pages[name]
    if SELF not in page.policy and "default-src 'none'" not in page.policy:
        yield "says nothing of what it may load (Content-Security-Policy)"
    for url in page.loaded:
        if OUTSIDE.match(url):
            yield f"loads {url}"
    for text in page.styles:
        yield from (f"loads {url}" for url in outside_css(text))
    for text in page.scripts:
        yield from (f"may ask {url}" for url in outside_script(text))
    for url in [*page.links, *page.loaded]:
        fault = _broken(site, base, name, url, pages)
        if fault:
            yield fault


def _broken(site: Path, base: str, name: str, url: str, pages: dict[str, Page]) -> str:
    """What is wrong with a link inside the site; "" of others."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc:
        return ""
    target = name
    if parts.path:
        path = unquote(parts.path)
        if path.startswith("/"):
            target = posixpath.normpath(path.removeprefix(base) or ".")
        else:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
        if (site / target).is_dir():
            target = posixpath.normpath(posixpath.join(target, "index.html"))
        if not (site / target).is_file():
            return f"links {url}, which is not there"
    fragment = unquote(parts.fragment)
    if fragment and target in pages and fragment not in pages[target].ids:
        return f"links {url}, and {target} has no such place"
    return ""


def main() -> int:
    """Name every fault; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=Path("site"), help="the folder")
    found = list(problems(parser.parse_args().site))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
