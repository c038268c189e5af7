"""The page in headless Chromium: by mouse, by keyboard, on a phone and without a script."""

from __future__ import annotations

import os

import pytest
from pages import (
    BOARD,
    CHROMIUM,
    FLAGS,
    committed,
    crowded,
    hostile,
    short,
    text_of,
    with_people,
)

from robustdd_bench.board.schema import BoardContent
from robustdd_bench.board.views.run_page import run_pages

sync_api = pytest.importorskip("playwright.sync_api")
REQUIRED = os.environ.get("ROBUSTDD_BROWSER_TESTS") == "required"
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not REQUIRED,
    reason="no Chromium on this machine (Debian: apt-get install chromium)",
)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages by name, beside the board's files."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "results").symlink_to(BOARD / "results")
    soft = crowded(12)
    soft["tracks"] = soft["tracks"][:1] + soft["tracks"][2:]
    for name, board in (
        ("plain", with_people(committed())),
        ("hostile", hostile()),
        ("crowded", soft),
        ("short", short(with_people(committed()))),
        ("short of soft labels", short(soft)),
    ):
        (folder / f"{name}.html").write_text(text_of(board), encoding="utf-8")
    return folder


@pytest.fixture
def visit(browser, files):
    """`visit(name, fragment, **context)`: an open page; what went wrong in it fails the test."""
    contexts, wrong = [], []

    def opened(name="plain", fragment="", *, width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((files / f"{name}.html").as_uri() + fragment)
        return page

    opened.wrong = wrong
    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def column(page, track, index):
    rows = page.locator(f"#{track} table.board tbody.ranked tr")
    return [
        rows.nth(i).locator("td, th").nth(index).get_attribute("data-value")
        for i in range(rows.count())
    ]


def test_columns_sort_by_mouse_and_keyboard_and_ranks_stay(visit) -> None:
    page = visit()
    before = column(page, "digits-ipc10", 1)
    head = page.locator("#digits-ipc10 thead th").nth(4)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    clean = [float(value) for value in column(page, "digits-ipc10", 4)]
    assert clean == sorted(clean, reverse=True)
    ranks = dict(zip(column(page, "digits-ipc10", 1), column(page, "digits-ipc10", 0), strict=True))
    assert ranks["mat"] == "1"
    assert column(page, "digits-ipc10", 1) != before
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "none"
    assert column(page, "digits-ipc10", 1) == before
    # The references keep to their place below the ranked rows.
    last = page.locator("#digits-ipc10 table.board tr").last
    assert "full" in last.inner_text()


def test_a_link_to_a_row_opens_its_details(visit) -> None:
    (track,) = (track for track in committed()["tracks"] if track["track"] == "digits-ipc10")
    row = next(r for r in track["rows"] if r["method"] == "mat")
    page = visit(fragment=f"#digits-ipc10/{row['id']}")
    card = page.locator("details.card[open]")
    assert card.count() == 1
    assert card.locator(".set").bounding_box()["height"] > 100
    assert card.locator(".command code").first.inner_text() == row["command"]
    # By the keyboard: a method's name is a link to its details.
    link = page.locator("#digits-ipc1 tbody .method a").nth(1)
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#digits-ipc1 details.card[open]")
    focused = page.evaluate("document.activeElement.closest('details').id")
    assert "#" + focused == link.get_attribute("href")
    # The picture is there, not only its frame.
    strip = card.locator(".set").first
    picture = strip.locator("i").first if strip.locator("i").count() else strip
    shown = picture.evaluate("e => getComputedStyle(e).backgroundImage.slice(0, 20)")
    assert shown.startswith('url("data:image/png')


def test_filters_show_what_fits_and_live_in_the_address(visit) -> None:
    page = visit()
    page.select_option("select[name=ipc]", "1")
    shown = [s.get_attribute("id") for s in page.locator("section.track:visible").all()]
    assert shown == ["digits-ipc1"]
    assert page.locator("table.overview tbody tr:visible").count() == 1
    assert page.locator(".count").inner_text() == "1 of 3 tracks"
    address = page.url
    again = visit(fragment="#" + address.partition("#")[2])
    assert again.locator("section.track:visible").count() == 1
    assert again.locator("select[name=ipc]").input_value() == "1"
    # A link to a hidden track brings it back.
    again.evaluate("location.hash = '#digits-ipc10'")
    again.wait_for_selector("#digits-ipc10:visible")
    again.select_option("select[name=ipc]", "1")
    again.select_option("select[name=students]", index=2)
    assert again.locator("section.track:visible").count() == 0
    assert again.locator(".none").is_visible()
    again.get_by_role("button", name="Show all").click()
    # Not by a function that waits in the page, which its policy does not let be made of a text.
    sync_api.expect(again.locator(".count")).to_have_text("3 of 3 tracks")


def test_divisions_are_tables_of_their_own_and_can_be_chosen(visit) -> None:
    page = visit("crowded")
    assert page.locator("#digits-ipc1 table.board").count() == 2
    page.select_option("select[name=division]", "soft")
    assert page.locator("#digits-ipc1 table.board:visible").count() == 1
    assert page.locator("section.track:visible").count() == 1
    page = visit("crowded", "#division=nonsense&ipc=7&=&%")
    assert page.locator("section.track:visible").count() == 2


def test_a_phone_never_scrolls_sideways_and_keeps_the_method_in_view(visit) -> None:
    for name in ("plain", "crowded"):
        page = visit(name, width=390, height=844)
        for details in page.locator("details").all():
            details.evaluate("e => { e.open = true }")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390
    page.locator("#digits-ipc1 table.board").first.scroll_into_view_if_needed()
    box = page.locator("#digits-ipc1 tbody tr:first-child td.headline").first.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390, "the headline is seen without scrolling"
    page = visit(width=700, height=844)
    scroll = page.locator("#digits-ipc1 .scroll").first
    scroll.evaluate("e => { e.scrollLeft = 100 }")
    cell = page.locator("#digits-ipc1 tbody .method").first.bounding_box()
    assert abs(cell["x"] - scroll.bounding_box()["x"]) < 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_run_fits_a_phone_and_passes_the_audit(visit, files, scheme) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for text in run_pages(BoardContent.model_validate(committed(), strict=False)).values():
        (files / "runs").mkdir(exist_ok=True)
        (files / "runs" / "one.html").write_text(text, encoding="utf-8")
        break
    for width in (390, 1280):
        page = visit("runs/one", width=width, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('img').naturalWidth") > 10
        assert axe.Axe().run(page).response["violations"] == []


def test_without_a_script_everything_can_be_read(visit) -> None:
    page = visit(java_script_enabled=False)
    assert page.locator("table.board:visible").count() == 4
    assert not page.locator("form.filters").is_visible()
    assert page.locator(".none").is_hidden()
    assert page.locator("thead button").count() == 0
    card = page.locator("#digits-ipc10 details.card").first
    card.locator("summary").first.click()
    assert card.locator(".set").is_visible()
    assert page.locator("svg").count() > 6


def test_a_command_is_copied(visit) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.locator("#digits-ipc10 details.card summary").first.click()
    button = page.locator("#digits-ipc10 .command button").first
    button.click()
    sync_api.expect(button).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#digits-ipc10 .command code").first.inner_text()


def test_pointing_at_a_row_shows_it_in_the_plots(visit) -> None:
    page = visit()
    row = page.locator("#digits-ipc10 tbody.ranked tr").nth(1)
    row.hover()
    name = row.get_attribute("data-row")
    hot = [e.get_attribute("data-row") for e in page.locator("#digits-ipc10 svg g.hot").all()]
    assert hot == [name, name]
    page.mouse.move(0, 0)
    assert page.locator(".hot").count() == 0


def test_texts_of_strangers_do_nothing(visit) -> None:
    page = visit("hostile")
    for details in page.locator("details").all():
        details.evaluate("e => { e.open = true }")
    page.locator("thead button").first.click()
    page.mouse.move(300, 600)
    assert page.title() == "robustdd-bench: the board of robust dataset distillation"
    assert page.evaluate("document.scripts.length") == 1
    # Even a script that had slipped in could not run.
    page.evaluate(
        "() => { const s = document.createElement('script');"
        "s.textContent = 'document.title = 1'; document.body.append(s); }"
    )
    assert page.title() != "1"
    (refusal,) = visit.wrong
    assert "Content Security Policy" in refusal
    visit.wrong.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_accessibility_audit_finds_nothing(visit, scheme) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    for width in (1280, 390):
        name = "short of soft labels" if width == 390 else "short"
        page = visit(name, width=width, color_scheme=scheme)
        for details in page.locator("#overview-title ~ details, #digits-ipc1 details").all():
            details.evaluate("e => { e.open = true }")
        found = axe.Axe().run(page).response
        assert [
            (item["id"], [node["target"] for node in item["nodes"]][:3])
            for item in found["violations"]
        ] == []
        assert any(item["id"] == "color-contrast" for item in found["passes"])
