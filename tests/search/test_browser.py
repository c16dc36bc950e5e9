"""The report and the browse page in a real browser: quiet, readable, usable without a mouse."""

import re
import threading

import pytest
from helpers.chromium import SCHEMES, WIDTHS, Tab, browser

from stml_semi.search.answers_page import write_page
from stml_semi.search.browse.finder import Finder
from stml_semi.search.browse.server import serve
from stml_semi.search.embed import embed_source
from stml_semi.search.query import search

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


def test_the_report_reads_well_everywhere(chromium, finished_run):
    for scheme, width in zip(SCHEMES, WIDTHS, strict=True):
        tab = Tab(chromium, (finished_run / "report.html").as_uri(), scheme=scheme, width=width)
        tab.check()
        assert tab.beyond() == []
        folded = tab.page.locator("details.fold:not([open])")
        if width < 640:
            # A phone shows what there is; a link opens its part.
            assert tab.page.evaluate("document.documentElement.scrollHeight") < 6000
            assert folded.count() == tab.page.locator("details.fold").count() == 6
            tab.page.click("nav a[href='#curves']")
            assert tab.page.locator("details.fold[open] #curves").is_visible()
            tab.page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
            tab.check()
            assert tab.beyond() == []
        assert folded.count() == 0
        shown = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (shown == "rgb(255, 255, 255)") == (scheme == "light")
        tab.page.close()


def test_the_report_works_by_keyboard(chromium, finished_run):
    tab = Tab(chromium, (finished_run / "report.html").as_uri())
    page = tab.page
    shown = "[...document.querySelectorAll('.query:not([hidden])')].map(q => ({ ...q.dataset }))"

    tab.focus(".gallery select >> nth=0")
    page.keyboard.press("b")
    assert {query["label"] for query in page.evaluate(shown)} == {"b"}
    assert "queries shown" in page.locator(".gallery [role=status]").inner_text()
    page.keyboard.press("Home")
    assert len(page.evaluate(shown)) == 10

    tab.focus(".gallery select >> nth=1")
    gains = [float(query["after"]) - float(query["before"]) for query in page.evaluate(shown)]
    assert gains == sorted(gains, reverse=True)
    page.keyboard.press("ArrowDown")
    after = [float(query["after"]) for query in page.evaluate(shown)]
    assert after == sorted(after)

    # One stop for a strip of images; arrow keys go on within it, Enter enlarges, Escape comes back.
    tab.focus(".query:not([hidden]) .hits img")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert second.startswith("2, ")
    page.keyboard.press("Enter")
    assert page.locator("#enlarged").is_visible()
    assert page.locator("#enlarged p").inner_text() in second
    page.keyboard.press("Escape")
    assert not page.locator("#enlarged").is_visible()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == second

    tab.focus(".gallery button")
    page.keyboard.press("Enter")
    assert len(page.evaluate(shown)) == 20
    assert page.evaluate("document.activeElement.tagName") == "H3"

    tab.focus(".map")
    page.keyboard.press("ArrowRight")
    first = page.locator(".map-part .pointed").inner_text()
    assert first.startswith("class ")
    assert page.locator(".map-part .pointed img").evaluate("image => image.naturalWidth") > 0
    assert page.locator("use.chosen").count() == page.locator(".map").count() == 2

    tab.focus(".matrix")
    page.keyboard.press("ArrowRight")
    assert page.locator(".relations .pointed").inner_text().startswith("Affinity ")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".relations .pointed").inner_text().endswith(" and itself")

    tab.focus(".configuration summary")
    page.keyboard.press("Enter")
    assert page.locator(".configuration table").is_visible()
    tab.check()


def test_the_map_shows_pictures_on_hover(chromium, finished_run):
    tab = Tab(chromium, (finished_run / "report.html").as_uri())
    points = tab.page.locator(".map >> nth=1").locator("use")
    points.nth(3).hover(force=True)
    picture = tab.page.locator(".map-part .pointed img")
    assert picture.is_visible()
    assert tab.page.locator(".map-part .pointed").inner_text().startswith("class ")
    cells = tab.page.locator(".cells").bounding_box()
    tab.page.locator(".cells").scroll_into_view_if_needed()
    tab.page.locator(".cells").hover(position={"x": cells["width"] - 2, "y": 2})
    assert tab.page.locator(".relations .pointed").inner_text().startswith("Affinity ")


@pytest.fixture(scope="module")
def site(finished_run, tmp_path_factory):
    """The browse page on the images of a run: its address and the images."""
    pictures = finished_run.parent / "labeled"
    folder = tmp_path_factory.mktemp("browse") / "index"
    embed_source(str(finished_run), str(pictures), str(folder), num_workers=0)
    with serve(Finder(str(folder), None, k=6), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url, pictures
        server.shutdown()


def test_the_browse_page_reads_well_everywhere(chromium, site):
    url, pictures = site
    for scheme, width in zip(SCHEMES, WIDTHS, strict=True):
        tab = Tab(chromium, url, scheme=scheme, width=width)
        tab.page.wait_for_load_state("networkidle")
        tab.check()
        tab.page.locator(".samples a").first.click()
        tab.page.wait_for_selector(".answers li")
        assert not tab.page.locator(".samples").is_visible()
        tab.page.go_back()
        tab.page.locator(".samples").wait_for()
        assert not tab.page.locator(".answers").is_visible()
        tab.page.set_input_files("#file", pictures / "c" / "2.png")
        tab.page.wait_for_selector(".answers li")
        tab.page.wait_for_load_state("networkidle")
        tab.check()
        tab.page.close()


def test_the_browse_page_finds_and_explains_by_keyboard(chromium, site, tmp_path):
    url, pictures = site
    tab = Tab(chromium, url)
    page, status = tab.page, tab.page.locator("[role=status]")

    tab.focus("#file")
    # Whether Space opens the system's dialog is up to the browser, and on a busy machine to its patience.
    page.set_input_files("#file:focus", pictures / "c" / "2.png")
    page.wait_for_selector(".answers li")
    assert status.inner_text() == "6 neighbors of 2.png"
    assert page.locator(".answers li").first.locator("strong").inner_text() == "1 · cosine 1.000"
    assert "c/2.png" in page.locator(".answers li").first.inner_text()

    tab.focus(".answers .enlarge >> nth=1")
    page.keyboard.press("Enter")
    assert page.locator("#enlarged").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#enlarged").is_visible()
    tab.focus(".answers .more >> nth=2")
    page.keyboard.press("Enter")
    status.filter(has_text="neighbors of row").wait_for()
    assert page.evaluate("document.activeElement.id") == "answers"
    tab.check()

    tab.focus("input[type=number]")
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    status.filter(has_text="neighbors of row 7").wait_for()
    assert tab.said == []
    assert page.url.endswith("#row=7&k=6")
    page.select_option(".count:not(.class) select", "10")
    status.filter(has_text="10 neighbors of row 7").wait_for()
    page.go_back()
    status.filter(has_text="6 neighbors of row 7").wait_for()
    page.select_option(".class select", label="b")
    status.filter(has_text="neighbors of row 7 in class b").wait_for()
    assert {name.split("/")[0] for name in page.locator(".answers .soft").all_inner_texts()} == {"b"}
    address = page.url
    page.go_back()
    status.filter(has_text="6 neighbors of row 7").wait_for()
    page.goto(address)  # A bookmark.
    status.filter(has_text="neighbors of row 7 in class b").wait_for()
    page.select_option(".class select", label="any")
    status.filter(has_text="6 neighbors of row 7").wait_for()

    tab.focus(".answers .add >> nth=1")
    added = page.locator(".answers .add").nth(1).get_attribute("aria-label")
    (row,) = re.findall(r"Add neighbor 2, row (\d+), to the query", added or "")
    page.keyboard.press("Enter")
    status.filter(has_text=f"6 neighbors of rows 7, {row}").wait_for()
    assert page.url.endswith(f"#row=7,{row}&k=6")
    assert page.locator(".parts img").count() == 2
    tab.check()
    tab.focus(".parts .remove >> nth=0")
    page.keyboard.press("Enter")
    status.filter(has_text=f"6 neighbors of row {row}").wait_for()
    assert not page.locator(".parts .remove").is_visible()
    page.go_back()
    status.filter(has_text=f"6 neighbors of rows 7, {row}").wait_for()
    page.set_input_files("#file", pictures / "c" / "2.png")
    status.filter(has_text="6 neighbors of 2.png").wait_for()
    page.locator(".answers .add").nth(2).click()
    status.filter(has_text="6 neighbors of 2.png and row").wait_for()
    assert page.locator(".parts img").evaluate_all("images => images.every(i => i.complete && i.naturalWidth)")

    (tmp_path / "notes.txt").write_text("no image")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector(".failed")
    assert "notes.txt: not an image" in status.inner_text()
    (tmp_path / "large.png").write_bytes(bytes(21 * 2**20))
    page.set_input_files("#file", tmp_path / "large.png")
    status.filter(has_text="at most 20 are taken").wait_for()
    assert not page.locator(".answers").is_visible()


def test_the_page_of_a_search_reads_well(chromium, finished_run, tmp_path):
    pictures = finished_run.parent / "labeled"
    index = tmp_path / "index"
    embed_source(str(finished_run), str(pictures), str(index), num_workers=0)
    query = str(pictures / "a" / "0.png")
    write_page(str(tmp_path / "page.html"), str(index), search(str(index), [query], rows=[9], k=8))
    for scheme, width in zip(SCHEMES, WIDTHS, strict=True):
        tab = Tab(chromium, (tmp_path / "page.html").as_uri(), scheme=scheme, width=width)
        tab.check()
        assert tab.page.locator(".answers li").count() == 16
        assert tab.page.locator("h2").all_inner_texts()[0] == "Query: a/0.png"
        tab.page.close()


def test_a_dropped_picture_is_searched_for(chromium, site):
    url, pictures = site
    tab = Tab(chromium, url)
    data = list((pictures / "a" / "0.png").read_bytes())
    drop = """data => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(data)], "dropped.png", { type: "image/png" }));
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }"""
    tab.page.evaluate(drop, data)
    tab.page.wait_for_selector(".answers li")
    assert tab.page.locator("[role=status]").inner_text() == "6 neighbors of dropped.png"
    tab.page.wait_for_load_state("networkidle")
    tab.check()
