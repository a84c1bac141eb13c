"""The report in a real browser: all that a person sees and uses, with a keyboard, on a phone, without a network."""

import shutil
import tarfile

import pytest
from conftest import ROOT

from crate_jax.reports.writing import write_report
from crate_jax.training.opening import open_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "microsoft-edge")
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'crate_jax[browser]'"
    )
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_url(browser, tmp_path_factory):
    """The report of a run of the tests, all sections."""
    folder = tmp_path_factory.mktemp("run")
    with tarfile.open(ROOT / "tests" / "fixtures" / "runs" / "crate.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    assert write_report(open_run(folder / "run")).failed == {}
    return (folder / "run" / "report" / "index.html").as_uri()


class Opened:
    """A page with what went wrong while it was open."""

    def __init__(self, browser, url, *, size=DESKTOP, **options):
        self.context = browser.new_context(viewport=size, **options)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on(
            "console", lambda message: self.errors.append(message.text) if message.type == "error" else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.context.close()


SHAPES = """() => [...document.images].map(image => ({
  alt: image.alt, drawn: image.complete && image.naturalWidth > 0, start: image.src.slice(0, 11)}))"""


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_and_nothing_comes_from_outside(browser, page_url, size, scheme):
    with Opened(browser, page_url, size=size, color_scheme=scheme) as opened:
        opened.page.evaluate("() => Promise.all([...document.images].map(image => image.decode()))")
        images = opened.page.evaluate(SHAPES)
        assert len(images) > 20
        assert all(image["drawn"] and image["alt"] and image["start"] == "data:image/" for image in images), (
            images
        )
        assert opened.errors == []
        assert [url for url in opened.requests if not url.startswith("data:")] == [page_url]
        dark = opened.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")


def test_nothing_is_wider_than_a_phone(browser, page_url):
    with Opened(browser, page_url, size=PHONE) as opened:
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        # What scrolls by itself may be wider inside; nothing else may stick out.
        outside = opened.page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter(each => !each.closest(".scroll *, pre *") &&
              each.getClientRects().length && each.getBoundingClientRect().right > innerWidth + 1).map(
                each => each.outerHTML.slice(0, 200))"""
        )
        assert outside == []


def focused(page):
    return page.evaluate(
        """() => { const each = document.activeElement, box = each.getBoundingClientRect();
          return {tag: each.tagName, type: each.type || "", href: each.hash || "", visible: box.width > 0,
                  outline: getComputedStyle(each).outlineStyle}; }"""
    )


def test_a_keyboard_reaches_and_moves_everything(browser, page_url):
    with Opened(browser, page_url) as opened:
        page, seen = opened.page, []
        wanted = page.evaluate(
            """() => [...document.querySelectorAll("a, button, input, summary, [tabindex='0']")].filter(
              each => each.checkVisibility()).length"""
        )
        for _ in range(wanted):
            page.keyboard.press("Tab")
            seen.append(focused(page))
        assert [each for each in seen if not each["visible"] or each["outline"] == "none"] == []
        assert sum(each["type"] == "range" for each in seen) >= 3
        assert sum(each["tag"] == "BUTTON" for each in seen) > 5
        assert {each["href"] for each in seen if each["tag"] == "A"} >= {"#attention", "#atoms", "#subspaces"}


def test_sliders_step_through_the_pictures(browser, page_url):
    with Opened(browser, page_url) as opened:
        page = opened.page
        gallery = page.locator("#attention .gallery, [id$=attention] .gallery").first
        visible = "each => [...each.querySelectorAll('figure')].flatMap((f, i) => f.hidden ? [] : [i])"
        assert gallery.evaluate(visible) == [0]
        sliders = gallery.locator("input[type=range]")
        layers = int(sliders.last.get_attribute("max")) + 1
        sliders.last.focus()
        page.keyboard.press("ArrowRight")
        assert gallery.evaluate(visible) == [1]
        sliders.first.focus()
        page.keyboard.press("ArrowRight")
        assert gallery.evaluate(visible) == [layers + 1]
        shown = gallery.locator("figure:not([hidden]) img")
        assert shown.get_attribute("alt") and shown.is_visible()
        assert opened.errors == []


def test_a_table_is_sorted_by_a_key(browser, page_url):
    with Opened(browser, page_url) as opened:
        table = opened.page.locator("table.sortable").last
        column = "table => [...table.tBodies[0].rows].map(row => row.cells[2].textContent.trim())"
        before = table.evaluate(column)
        button = table.locator("thead th").nth(2).locator("button")
        for _ in range(2):
            button.focus()
            opened.page.keyboard.press("Enter")
            after = [float(text) for text in table.evaluate(column)]
            direction = table.locator("thead th").nth(2).get_attribute("aria-sort")
            assert after == sorted(after, reverse=direction == "descending")
        assert sorted(map(float, before)) == sorted(after)


def test_without_a_script_all_pictures_are_there(browser, page_url):
    with Opened(browser, page_url, java_script_enabled=False) as opened:
        figures = opened.page.locator("figure")
        assert figures.count() > 20 and all(figures.nth(i).is_visible() for i in range(figures.count()))
