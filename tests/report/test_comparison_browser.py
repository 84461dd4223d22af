"""The comparison's report in a real browser: it opens quickly, sorts, slides, and is usable by keyboard."""

from __future__ import annotations

import shutil

import pytest

from segtailor.report import write_report
from segtailor.results.leaderboard import summarise
from segtailor.results.model import read_comparison

from .comparisons import write_comparison

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)

if CHROMIUM is None:
    pytest.skip(
        f"no Chromium on this machine ({', '.join(NAMES)}); install one, e.g. `apt-get install chromium`",
        allow_module_level=True,
    )
pytest.importorskip("playwright", reason="playwright is missing: pip install playwright axe-playwright-python")
pytest.importorskip("axe_playwright_python", reason="axe is missing: pip install axe-playwright-python")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_comparison(tmp_path_factory.mktemp("comparison"))
    write_report(folder)
    return folder


@pytest.fixture
def open_page(browser, folder):
    """Return a function that opens the report; afterwards nothing may have been logged or requested."""
    pages, messages, requests = [], [], []

    def opened(width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((folder / "report.html").as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert messages == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in requests) == len(pages)


def _arms(page):
    return page.eval_on_selector_all(".leaderboard tbody tr", "rows => rows.map(row => row.dataset.arm)")


def _at(page):
    return page.eval_on_selector("[data-grid]", "grid => grid.style.getPropertyValue('--at')")


def _clip(page):
    return page.eval_on_selector("[data-grid] img.left", "image => getComputedStyle(image).clipPath")


def test_it_opens_within_a_second(open_page):
    page = open_page()
    spent = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    print(f"opened in {spent:.2f} s")
    assert spent < 3  # 1 s is promised; a busy machine may take longer


def test_columns_sort_by_click(open_page, folder):
    page = open_page()
    board = summarise(read_comparison(folder))
    assert _arms(page) == [result.arm for result in board.arms]
    head = page.locator(".leaderboard th", has_text="Rank")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.locator(".leaderboard [aria-sort]").count() == 1
    by_rank = {result.arm: result.rank for result in board.arms}
    assert [by_rank[arm] for arm in _arms(page)] == sorted(by_rank.values())
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [by_rank[arm] for arm in _arms(page)] == sorted(by_rank.values(), reverse=True)


def test_columns_sort_by_keyboard_and_missing_figures_stay_last(open_page, folder):
    page = open_page()
    closed = {result.arm: result.gap_closed for result in summarise(read_comparison(folder)).arms}
    known = sorted((value for value in closed.values() if value is not None), reverse=True)
    head = page.locator(".leaderboard th", has_text="Gap closed")
    page.locator(".leaderboard th", has_text="Rank").get_by_role("button").focus()
    page.keyboard.press("Tab")
    for key, order in (("Enter", known), ("Space", known[::-1])):
        page.keyboard.press(key)
        assert head.get_attribute("aria-sort") == ("descending" if key == "Enter" else "ascending")
        assert [closed[arm] for arm in _arms(page)] == [*order, None]
    assert page.evaluate("document.activeElement.textContent").startswith("Gap closed")


def test_the_divider_moves_by_keyboard_and_on_a_picture(open_page):
    page = open_page()
    slider = page.get_by_label("Divider")
    slider.focus()
    assert (_at(page), _clip(page)) == ("50%", "inset(0px 50% 0px 0px)")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert (_at(page), _clip(page)) == ("45%", "inset(0px 55% 0px 0px)")
    assert slider.get_attribute("aria-valuetext") == "none 45 %, kt-clean 55 %"
    page.keyboard.press("Home")
    assert _at(page) == "0%"
    stack = page.locator(".stack").first
    stack.scroll_into_view_if_needed()
    box = stack.bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
    assert (_at(page), slider.input_value()) == ("75%", "75")


def test_any_two_pictures_can_be_chosen(open_page):
    page = open_page()
    shown = "images => images.filter(image => !image.hidden).map(image => [image.dataset.key, image.className.trim()])"
    page.get_by_label("Left").select_option(label="Image")
    page.get_by_label("Right").select_option(label="Teacher")
    first = page.locator(".pair").first
    assert first.locator("img").evaluate_all(shown) == [["image", "left"], ["teacher", "flat right"]]
    assert first.locator("figcaption .right").inner_text() == "Teacher 3.0 % wrong"
    page.get_by_label("Left").select_option(label="Teacher")  # the same on both sides: one picture, not cut
    assert first.locator("img").evaluate_all(shown) == [["teacher", "flat right"]]
    assert page.locator(".pair").count() == 4


def test_two_arms_of_a_plot_are_brought_to_the_front_by_keyboard(open_page):
    page = open_page()
    figure = page.locator("[data-focus]").first
    assert figure.locator("g.first").get_attribute("data-arm") == "kt-clean"
    figure.locator("select").first.focus()
    page.keyboard.type("cwd")
    assert figure.locator("g.first").get_attribute("data-arm") == "cwd"
    assert figure.locator("g.arm").last.get_attribute("data-arm") == "cwd"
    plot = figure.locator(".plot")
    plot.focus()
    page.keyboard.press("End")
    lines = plot.locator(".readout").inner_text().splitlines()
    assert lines[0] == "step 2,000"
    assert sorted(line.split(":")[0] for line in lines[1:]) == ["cwd", "none"]


def test_pictures_of_tailoring_open_large_and_close_by_keyboard(open_page):
    page = open_page()
    page.locator(".zoom").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    assert page.locator("dialog img").get_attribute("alt") == "val-0000: photograph"
    page.keyboard.press("ArrowRight")
    assert "teacher's logits" in page.locator("dialog img").get_attribute("alt")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


@pytest.mark.parametrize("width", [*WIDTHS, 320])
def test_no_page_scrolls_sideways(open_page, width):
    page = open_page(width)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page, width, scheme):
    page = open_page(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = Axe().run(page)
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found.response["violations"]] == []


def test_single_runs_still_sort_and_read_out(browser, tmp_path):
    from .runs import write_run

    page = browser.new_page()
    page.goto(write_report(write_run(tmp_path / "run")).as_uri())
    head = page.locator("table.classes th", has_text="Difference")
    head.get_by_role("button").click()
    names = page.eval_on_selector_all(
        "table.classes tbody tr", "rows => rows.map(row => row.cells[0].textContent.trim())"
    )
    assert (head.get_attribute("aria-sort"), names) == ("descending", ["pole", "road", "<sky>"])
    plot = page.locator("[data-chart]").first
    plot.focus()
    page.keyboard.press("Home")
    assert plot.locator(".readout").inner_text().splitlines()[0] == "step 20"
    page.close()
