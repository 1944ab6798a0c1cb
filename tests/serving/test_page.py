"""The page of a model in a real browser: what is drawn, painted, pressed and kept."""

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("playwright")

import uvicorn
from playwright import sync_api as playwright

from smalti.serving.app import build
from tests.browser import CHROMIUM, TIMEOUT, quiet_page
from tests.serving.models import predictor_of
from tests.small_runs import picture, pretrain

TOKEN = "0123456789abcdef0123456789abcdef"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium")


@contextmanager
def served(run: Path, **options: Any) -> Iterator[str]:
    """The address at which a model is served."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    app = build(predictor_of(run), None, **options)
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_level="error"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with served(runs / "crossed") as address:
        yield address


@contextmanager
def opened(browser: Any, address: str, width: int = 1200, **options: Any) -> Iterator[Any]:
    """A page that has predicted once; nothing was written to its console, and nothing asked of anybody else."""
    with quiet_page(browser, address, width, **options) as page:
        page.locator("body[data-ready]").wait_for()
        yield page


def predicted(page: Any) -> str:
    return str(page.locator("#result > img").get_attribute("src"))


def masked(page: Any) -> list[int]:
    cells = page.locator("#paint button")
    return [n for n in range(cells.count()) if "masked" in (cells.nth(n).get_attribute("class") or "").split()]


@contextmanager
def another_prediction(page: Any) -> Iterator[None]:
    """Waits until what is done in the block has been predicted."""
    before = int(page.locator("body").get_attribute("data-ready"))
    yield
    page.locator(f'body[data-ready="{before + 1}"]').wait_for()


def middle(page: Any, board: str, patch: int) -> tuple[float, float]:
    box = page.locator(f"{board} button").nth(patch).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "light"), (390, "dark")])
def test_it_loads_without_errors_or_outside_requests_and_fits(
    browser: Any, address: str, width: int, scheme: str
) -> None:
    with opened(browser, address, width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert "4 x 4" not in page.locator("#facts").inner_text()
        assert "16 visual tokens" in page.locator("#facts").inner_text()
        assert page.locator("#views img").count() == 5
        assert page.locator("#samples img").count() == 4
        paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) > 384) == (scheme == "light")
        unnamed = "[...document.querySelectorAll('button, input, select')].filter(e => !e.checkVisibility() ? false : "
        unnamed += "!(e.getAttribute('aria-label') || e.textContent.trim() || e.title || e.labels?.length)).length"
        assert page.evaluate(unnamed) == 0


def test_painting_with_the_mouse_changes_the_prediction(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        with another_prediction(page):
            page.get_by_role("button", name="Mask nothing").click()
        assert masked(page) == []
        whole = predicted(page)
        page.mouse.move(*middle(page, "#paint", 4))
        page.mouse.down()
        page.mouse.move(*middle(page, "#paint", 7), steps=12)
        page.mouse.up()
        page.locator("#said", has_text="4 of 16 patches masked").wait_for()
        assert masked(page) == [4, 5, 6, 7]
        assert predicted(page) != whole
        page.mouse.click(*middle(page, "#paint", 6))
        page.locator("#said", has_text="3 of 16 patches masked").wait_for()
        assert masked(page) == [4, 5, 7]


def test_painting_with_a_finger(browser: Any, address: str) -> None:
    with opened(browser, f"{address}#patches=", 390, has_touch=True, is_mobile=True) as page:
        page.locator("#paint").scroll_into_view_if_needed()
        places = [middle(page, "#paint", patch) for patch in (0, 1, 2)]
        touch = page.context.new_cdp_session(page)
        for kind, (x, y) in zip(["touchStart", "touchMove", "touchMove"], places, strict=True):
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.locator("#said", has_text="3 of 16 patches masked").wait_for()
        assert masked(page) == [0, 1, 2]


def test_two_fingers_zoom_the_page_and_paint_nothing(browser: Any, address: str) -> None:
    with opened(browser, f"{address}#patches=1.2", 390, has_touch=True, is_mobile=True) as page:
        assert page.locator("meta[name=viewport]").get_attribute("content") == "width=device-width, initial-scale=1"
        page.locator("#paint").scroll_into_view_if_needed()
        touch, (x, y) = page.context.new_cdp_session(page), middle(page, "#paint", 5)
        assert page.evaluate("visualViewport.scale") == 1
        for far in range(20, 101, 10):
            points = [{"x": x + side * far, "y": y, "id": number} for number, side in enumerate((-1, 1))]
            touch.send(
                "Input.dispatchTouchEvent", {"type": "touchMove" if far > 20 else "touchStart", "touchPoints": points}
            )
            page.wait_for_timeout(20)
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert page.evaluate("visualViewport.scale") > 1.5
        assert masked(page) == [1, 2]
        assert "patches=1.2" in page.url


def test_the_keyboard_alone_can_do_it(browser: Any, address: str) -> None:
    """Tab to the board, arrows, space; on to the prediction, Enter; then an overlay."""

    def tab_to(page: Any, inside: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches('{inside}')"):
                return
        raise AssertionError(f"{inside} is not reached by Tab")

    with opened(browser, f"{address}#patches=") as page:
        whole = predicted(page)
        tab_to(page, "#paint button")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", "the focus is seen"
        for key in ("ArrowRight", "ArrowDown", "End", "ArrowLeft"):
            page.keyboard.press(key)
        with another_prediction(page):
            page.keyboard.press("Space")
        assert masked(page) == [6]
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "row 2, column 3, masked"
        assert predicted(page) != whole
        tab_to(page, "#result button")
        for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        assert page.locator("#inspect li").count() >= 5
        assert page.locator("#inspect h3").inner_text() == "Row 2, column 3"
        tab_to(page, "#overlay")
        page.keyboard.press("ArrowDown")
        assert page.locator("#overlay").input_value() == "entropy"
        with another_prediction(page):
            page.keyboard.press("Shift+Tab")
            page.locator("#paint button").nth(6).focus()
            page.keyboard.press("Enter")
        assert masked(page) == []


def test_a_patch_shows_its_guesses_and_codes_like_them(browser: Any, address: str) -> None:
    with opened(browser, f"{address}#patches=5.6") as page:
        page.locator("#result button").nth(5).click()
        assert page.locator("#inspect li").count() in (5, 6)
        assert page.locator("#inspect li.true").count() == 1
        assert all(
            src.startswith("data:image/png")
            for src in page.locator("#inspect li img").evaluate_all("a => a.map(i => i.src)")
        )
        page.locator("#inspect li button").first.click()
        page.locator("#inspect .codes img").first.wait_for()
        assert page.locator("#inspect .codes img").count() == 12
        page.locator("#result button").nth(0).click()
        assert "Not masked" in page.locator("#inspect").inner_text()


def test_overlays_show_entropy_and_attention_from_a_patch(browser: Any, address: str) -> None:
    shades = "cells => cells.map(cell => Number(cell.firstChild.style.opacity))"
    with opened(browser, f"{address}#patches=5.6") as page:
        page.select_option("#overlay", "entropy")
        shown = page.locator("#result button").evaluate_all(shades)
        assert [n for n, opacity in enumerate(shown) if opacity > 0] == [5, 6]
        page.select_option("#overlay", "attention")
        assert page.locator("#layer option").all_inner_texts() == ["encoder 1", "encoder 2", "decoder 1"]
        page.mouse.move(*middle(page, "#result", 6))
        page.locator("#scale-said", has_text="goes to the class token").wait_for()
        shown = page.locator("#result button").evaluate_all(shades)
        assert shown[5] == shown[6] == 0, "a decoder's queries see visible patches alone"
        assert max(shown) == pytest.approx(0.85)
        page.mouse.move(*middle(page, "#result", 0))
        page.locator("#scale-said", has_text="not in this block").wait_for()
        page.select_option("#layer", "1")
        page.locator("#scale-said", has_text="goes to the class token").wait_for()
        one = page.locator("#result button").evaluate_all(shades)
        page.select_option("#head", "1")
        page.locator("body").press("Escape")
        playwright.expect(page.locator("#head")).to_have_value("1")
        for _ in range(600):
            if page.locator("#result button").evaluate_all(shades) != one:
                break
            page.wait_for_timeout(100)
        assert page.locator("#result button").evaluate_all(shades) != one


def test_a_link_shows_the_same_again(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        with another_prediction(page):
            page.get_by_role("button", name="coffee").click()
        with another_prediction(page):
            page.select_option("#draw", "blockwise")
        with another_prediction(page):
            page.get_by_role("button", name="Draw another").click()
        link, before, patches = page.url, predicted(page), masked(page)
        assert "image=coffee" in link
        assert "draw=blockwise" in link
    with opened(browser, link) as page:
        assert (predicted(page), masked(page)) == (before, patches)
    for wrong in ("#image=nix&ratio=7&seed=-1&patches=99.x.-3", "#patches=%F0%9F&draw=all", "#seed=1e400"):
        with opened(browser, address + wrong) as page:
            assert "patches masked" in page.locator("#said").inner_text()


def test_an_image_of_ones_own_is_chosen_or_dropped(browser: Any, address: str, tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    picture(3, across=False, side=40).save(path)
    with opened(browser, address) as page:
        before = page.locator("#paint > img").get_attribute("src")
        with another_prediction(page):
            page.set_input_files("#file", path)
        chosen = page.locator("#paint > img").get_attribute("src")
        assert chosen != before
        assert "image=" not in page.url
        with another_prediction(page):
            page.get_by_role("button", name="rocket").click()
        page.evaluate(
            """(given) => {
                const bytes = Uint8Array.from(atob(given.split(',')[1]), (c) => c.charCodeAt(0));
                const moved = new DataTransfer();
                moved.items.add(new File([bytes], 'dropped.png', { type: 'image/png' }));
                const how = { dataTransfer: moved, bubbles: true, cancelable: true };
                document.body.dispatchEvent(new DragEvent('drop', how));
            }""",
            chosen,
        )
        playwright.expect(page.locator("#paint > img")).to_have_attribute("src", chosen, timeout=TIMEOUT)


def test_what_is_no_image_is_said_in_one_line(browser: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<!DOCTYPE html><script>alert(1)</script>")
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(address)
    page.locator("body[data-ready]").wait_for()
    page.set_input_files("#file", tmp_path / "page.png")
    page.locator("#said.wrong", has_text="it looks like HTML").wait_for()
    page.close()


def test_it_is_downloaded_as_a_picture(browser: Any, address: str) -> None:
    with opened(browser, f"{address}#patches=5.6") as page:
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download as PNG").click()
        found = np.asarray(Image.open(io.BytesIO(Path(waiting.value.path()).read_bytes())).convert("RGB"))
        assert waiting.value.suggested_filename == "smalti.png"
        assert found.shape == (224 + 16, 9 * 232 + 8, 3)
        assert len(np.unique(found.reshape(-1, 3), axis=0)) > 20


def test_samples_change_with_seed_and_temperature(browser: Any, address: str) -> None:
    pictures = "images => images.map(image => image.src)"
    with opened(browser, address) as page:
        before = page.locator("#samples img").evaluate_all(pictures)
        with another_prediction(page):
            page.get_by_role("button", name="Draw others").click()
        assert page.locator("#samples img").evaluate_all(pictures) != before
        assert "samples=1" in page.url


def test_with_a_token_the_page_works_and_keeps_it_out_of_the_link(browser: Any, runs: Path) -> None:
    with served(runs / "beit", token=TOKEN) as address:
        with opened(browser, f"{address}#token={TOKEN}") as page:
            assert "patches masked" in page.locator("#said").inner_text()
            assert TOKEN not in page.url
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto(address)
        page.locator("#said.wrong", has_text="no token").wait_for()
        page.close()


def test_a_model_of_pixels_has_a_page_without_tokens(browser: Any, runs: Path, tmp_path: Path) -> None:
    assert pretrain(runs / "photos", "", tmp_path / "run", 2, "--target", "pixels") == 0
    with served(tmp_path / "run") as address, opened(browser, f"{address}#patches=5.6") as page:
        assert page.locator("#views figcaption").all_inner_texts() == ["original", "masked", "predicted"]
        assert not page.locator("#sampling").is_visible()
        assert "predicts pixels" in page.locator("#inspect").inner_text()
        with another_prediction(page):
            page.mouse.click(*middle(page, "#paint", 0))
        assert masked(page) == [0, 5, 6]
