"""The built site in Chromium: it asks its own server alone, fits a phone, and can be searched.

`make site` builds it; where it is not built, these tests are skipped.
"""

from __future__ import annotations

import functools
import http.server
import os
import threading
from pathlib import Path

import pytest
from pages import CHROMIUM, FLAGS

sync_api = pytest.importorskip("playwright.sync_api")
ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
REQUIRED = os.environ.get("ROBUSTDD_BROWSER_TESTS") == "required"
pytestmark = [
    pytest.mark.skipif(
        not (SITE / "index.html").exists() and not REQUIRED, reason="no site: `make site` builds it"
    ),
    pytest.mark.skipif(
        CHROMIUM is None and not REQUIRED,
        reason="no Chromium on this machine (Debian: apt-get install chromium)",
    ),
]
PAGES = (
    "index",
    "extend/attack",
    "reference/interfaces",
    "results",
    "records",
    "design",
    "notebooks/first-run",
    "404",
)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/favicon.ico":  # browsers ask for it unasked
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()


@pytest.fixture(scope="module")
def address():
    """Where the site is served, below the path that its pages name."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(SITE))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(browser, address):
    """`visit(name, width)`: an open page; requests to others and errors fail the test."""
    contexts, wrong = [], []

    def asked(request) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            wrong.append(request.url)

    def opened(name, width):
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", asked)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if name != "404":  # its files lie below the site's own path, which is not served here
            page.on("console", lambda message: wrong.append(message.text))
        page.goto(f"{address}/{name}.html", wait_until="networkidle")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_its_own_server_alone_and_fits(visit, name: str, width: int) -> None:
    page = visit(name, width)
    assert page.locator("h1").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_search_finds_a_command(visit) -> None:
    page = visit("index", 1280)
    page.locator(".md-search__input").click()
    page.locator(".md-search__input").press_sequentially("check-plugin", delay=30)
    page.locator(".md-search-result__link").first.wait_for()
    assert "check-plugin" in page.locator(".md-search-result__list").inner_text()


def test_the_board_is_part_of_the_site(visit) -> None:
    page = visit("leaderboard/index", 1280)
    assert page.locator("table.board").count() > 3
