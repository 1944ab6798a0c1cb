"""The page in a real browser: charts answer, nothing is asked of anybody, and everybody can use it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright")

from smalti.cli import main
from smalti.report.charts import by_layer, curve
from smalti.report.page import Section, page, table
from smalti.report.pictures import tile_map, tile_row
from tests.browser import CHROMIUM, quiet_page, violations

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium")

STEPS = list(range(10, 1010, 10))
NOISE = np.random.default_rng(0).normal(0, 0.1, len(STEPS))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with a chart of two lines, one of them noisy and one that is logged at other steps, and one of layers."""
    lines = {"a": (STEPS, list(5 - np.array(STEPS) / 500 + NOISE)), "b": ([15, 505, 995], [4.0, 3.0, 2.5])}
    chart = curve(lines, xlabel="step", ylabel="nats per masked patch", level=("unigram entropy", 4.5))
    layers = by_layer([(str(n), {"ours": 0.1 * n, "random": 0.3}) for n in range(1, 7)])
    images = np.zeros((2, 8, 8, 1), np.uint8)
    cells, full = np.zeros((2, 3, 8, 8, 3), np.uint8), np.ones((2, 3), np.bool_)
    places = tile_map(cells, np.arange(6).reshape(2, 3) % 2, full, ("cat", "dog"))
    sections = [
        Section("Curves", chart + layers, "What is below the line is learned."),
        Section("Numbers", table(["run", "k-NN"], [["a", "81.2 %"]], highlight={(0, 1)})),
        Section("Pictures", tile_row({"original": images}, captions=["a.png", "b.png"]) + places, run="a"),
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page("two runs", "What came out.", sections, {"loss": "2.1 nats"}))
    return path.as_uri()


def over(page: Any, number: int = 0) -> dict[str, float]:
    """The place of the inside of a chart on the screen."""
    page.locator(".u-over").nth(number).scroll_into_view_if_needed()
    box: dict[str, float] = page.locator(".u-over").nth(number).bounding_box()
    return box


def keys(page: Any, number: int = 0) -> list[str]:
    found: list[str] = page.locator("figure.chart").nth(number).locator(".key b").all_inner_texts()
    return found


def shown_steps(page: Any) -> tuple[float, float]:
    """The first and the last tick that could be shown: the range of the first chart."""
    at = page.locator("figure.chart").first.locator(".place")
    box, ends = over(page), []
    for x in (box["x"] + 1, box["x"] + box["width"] - 1):
        page.mouse.move(x, box["y"] + 20)
        ends.append(float(at.inner_text().removeprefix("step ").replace(",", "")))
    return ends[0], ends[1]


def test_the_pointer_reads_values_and_leaves_the_last_ones(browser: Any, address: str) -> None:
    with quiet_page(browser, address) as page:
        before = keys(page)
        box = over(page)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
        place = page.locator("figure.chart").first.locator(".place")
        step = int(place.inner_text().removeprefix("step "))
        assert 450 <= step <= 550
        smooth, other = keys(page)
        assert float(smooth) == pytest.approx(5 - step / 500, abs=0.15)
        assert other == "3", "a line without a point there is read at its nearest"
        page.mouse.move(1, 1)
        assert (keys(page), place.inner_text()) == (before, "")
        box = over(page, 1)
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 30)
        assert page.locator("figure.chart").nth(1).locator(".place").inner_text() == "block 6"
        assert keys(page, 1) == ["60.0 %", "30.0 %"]


def test_dragging_zooms_and_a_button_shows_all_again(browser: Any, address: str) -> None:
    with quiet_page(browser, address) as page:
        assert shown_steps(page) == (10, 1000)
        button = page.get_by_role("button", name="Show all")
        assert button.count() == 0
        box = over(page)
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 50, steps=5)
        page.mouse.up()
        low, high = shown_steps(page)
        assert 240 <= low <= 280
        assert 480 <= high <= 520
        button.click()
        assert shown_steps(page) == (10, 1000)


def test_two_fingers_zoom_a_chart(browser: Any, address: str) -> None:
    with quiet_page(browser, address, 390, has_touch=True, is_mobile=True) as page:
        box, touch = over(page), page.context.new_cdp_session(page)
        back = page.locator("figure.chart").first.locator("button")
        assert back.is_hidden()
        y, middle = box["y"] + box["height"] / 2, box["x"] + box["width"] / 2
        for kind, far in (("touchStart", 40), ("touchMove", 50), ("touchMove", 70), ("touchMove", 80)):
            points = [{"x": middle - far, "y": y, "id": 0}, {"x": middle + far, "y": y, "id": 1}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        back.wait_for(state="visible")
        first, last = shown_steps(page)
        assert first == pytest.approx(10 + 990 / 4, abs=40)
        assert last == pytest.approx(1000 - 990 / 4, abs=40)
        # a finger may be taken for a third one as long as the browser holds it to be a pinch
        back.dispatch_event("click")
        back.wait_for(state="hidden")


def test_the_keyboard_reads_and_zooms_too(browser: Any, address: str) -> None:
    with quiet_page(browser, address) as page:
        page.locator(".u-over").first.focus()
        place = page.locator("figure.chart").first.locator(".place")
        for key in ("ArrowRight", "ArrowRight", "PageDown"):
            page.keyboard.press(key)
        step = place.inner_text()
        assert step.startswith("step ")
        page.keyboard.press("ArrowLeft")
        assert place.inner_text() != step
        for key in ("+", "+"):
            page.keyboard.press(key)
        assert page.get_by_role("button", name="Show all").count() == 1
        page.keyboard.press("0")
        assert page.get_by_role("button", name="Show all").count() == 0


def test_without_script_there_is_the_drawing(browser: Any, address: str) -> None:
    with quiet_page(browser, address, java_script_enabled=False) as page:
        assert page.locator("figure.chart svg").count() == 2
        assert all(page.locator("figure.chart svg").nth(n).is_visible() for n in range(2))
        assert page.locator(".uplot").count() == 0


def test_no_other_script_runs(browser: Any, address: str) -> None:
    tab = browser.new_page()
    tab.goto(address)
    tab.evaluate(
        "() => { const made = document.createElement('script'); made.textContent = 'window.ran = true';"
        " document.body.append(made); }"
    )
    assert tab.evaluate("window.ran") is None
    tab.close()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_axe_finds_nothing_and_nothing_is_too_wide(browser: Any, address: str, width: int, scheme: str) -> None:
    with quiet_page(browser, address, width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(page) == []


def test_the_report_of_real_runs_is_small_complete_and_usable_by_everybody(
    browser: Any, runs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    assert (
        main(["report", *(str(runs / name) for name in ("tokenizer", "beit", "crossed", "classes")), "--out", str(out)])
        == 0
    )
    assert out.stat().st_size < 5e6
    with quiet_page(browser, out.as_uri()) as page:
        titles = page.locator("h2").all_inner_texts()
        wanted = ["Pretrain: side by side", "The nearest in feature space", "A map of the features"]
        assert set(wanted) <= set(titles)
        assert "decoder" in page.locator("table", has_text="what differs").inner_text()
        assert violations(page) == []
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
