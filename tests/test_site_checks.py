"""`scripts/check_site.py` finds what a built site must not hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from test_docs import script

checks = script("check_site")
POLICY = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'self'\">"
HOME = '<link rel="canonical" href="https://example.org/docs/index.html">'


def build(site: Path, body: str = "", **files: str) -> list[str]:
    """The faults of a small site whose page holds `body`."""
    site.mkdir(exist_ok=True)
    head = f"<!doctype html><html><head>{POLICY}{HOME}"
    (site / "index.html").write_text(f"{head}</head><body>{body}</body></html>")
    (site / "sub").mkdir(exist_ok=True)
    (site / "sub" / "page.html").write_text(
        f"{head}</head><body><h1 id='here'>x</h1></body></html>"
    )
    for name, text in files.items():
        (site / name.replace("_", ".")).write_text(text)
    return list(checks.problems(site))


@pytest.mark.parametrize(
    "body",
    [
        '<a href="https://example.org/x">a reader may follow this</a>',
        '<a href="sub/page.html#here">x</a><a href="#top" id="top">y</a>',
        '<a href="/docs/sub/page.html">from the site&#39;s own address</a>',
        '<img src="data:image/png;base64,AAAA"><a href="mailto:x@example.org">x</a>',
        "<p>https://example.org in a sentence, url(https://example.org) too</p>",
        '<a href="sub/../index.html?q=1">x</a>',
        '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0"/></svg>',
    ],
)
def test_a_whole_site_has_no_fault(tmp_path: Path, body: str) -> None:
    assert build(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (
            '<script src="https://cdn.example.org/a.js"></script>',
            "loads https://cdn.example.org/a.js",
        ),
        ('<script src="//cdn.example.org/a.js"></script>', "loads //cdn.example.org/a.js"),
        (
            '<link rel="stylesheet" href="https://fonts.example.org/css">',
            "loads https://fonts.example.org/css",
        ),
        ('<link rel="preconnect" href="https://fonts.example.org">', "loads https://fonts"),
        ('<img srcset="https://example.org/a.png 2x">', "loads https://example.org/a.png"),
        ('<iframe src="HTTPS://example.org/"></iframe>', "loads HTTPS://example.org/"),
        ('<p style="background: url(//example.org/a.png)">x</p>', "loads //example.org/a.png"),
        ('<style>@import "https://example.org/a.css";</style>', "loads https://example.org/a.css"),
        (
            '<script>fetch("https://api.example.org/x")</script>',
            "may ask https://api.example.org/x",
        ),
        ('<form action="https://example.org/send"></form>', "loads https://example.org/send"),
        (
            '<meta http-equiv="refresh" content="0; url=https://example.org/">',
            "loads https://example.org/",
        ),
        ('<a href="none.html">x</a>', "links none.html, which is not there"),
        ('<img src="none.png">', "links none.png, which is not there"),
        ('<a href="/other/index.html">x</a>', "links /other/index.html, which is not there"),
        (
            '<a href="sub/page.html#there">x</a>',
            "links sub/page.html#there, and sub/page.html has no",
        ),
        ('<a href="#there">x</a>', "links #there, and index.html has no such place"),
        ('<a href="sub">x</a>', "links sub, which is not there"),
    ],
)
def test_a_fault_of_a_page_is_named(tmp_path: Path, body: str, fault: str) -> None:
    found = build(tmp_path, body)
    assert any(line.startswith(f"index.html: {fault}") for line in found), found


def test_style_sheets_and_scripts_are_read_too(tmp_path: Path) -> None:
    found = build(
        tmp_path,
        a_css="@font-face { src: url('https://fonts.example.org/a.woff2') }",
        b_css=".a { background: url(data:image/png;base64,AA), url(a.png) }",
        a_js="const a = `https://unpkg.com/mermaid@11/dist/mermaid.min.js`",
        b_js="e.setAttribute('xmlns', 'http://www.w3.org/2000/svg') // https://example.org",
    )
    assert found == [
        "a.css: loads https://fonts.example.org/a.woff2",
        "a.js: may ask https://unpkg.com/mermaid@11/dist/mermaid.min.js",
    ]


def test_a_page_without_a_policy_is_named(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "bare.html").write_text("<!doctype html><html><head></head></html>")
    assert list(checks.problems(tmp_path)) == [
        "bare.html: says nothing of what it may load (Content-Security-Policy)"
    ]


def test_no_site_is_no_success(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["check_site.py", str(tmp_path)])
    assert checks.main() == 1
    assert capsys.readouterr().err == f"{tmp_path} holds no index.html\n"
    build(tmp_path)
    assert checks.main() == 0
