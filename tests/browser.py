"""Pages in a real browser: Chromium, driven by Playwright; and axe-core, which tells what some cannot use."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMEOUT = 240_000
"""Milliseconds; machines of tests are slow at times."""
AXE = Path(__file__).parent / "report" / "axe" / "axe.min.js"


@contextmanager
def launched() -> Iterator[Any]:
    """A browser without a window."""
    from playwright import sync_api as playwright

    flags = ["--disable-gpu", "--disable-dev-shm-usage", *(["--no-sandbox"] if os.getuid() == 0 else [])]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=TIMEOUT)
        yield browser
        browser.close()


@contextmanager
def quiet_page(browser: Any, address: str, width: int = 1200, **options: Any) -> Iterator[Any]:
    """A page at an address; nothing was written to its console, and nothing asked of anybody else."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    page.set_default_timeout(TIMEOUT)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    page.close()
    home = address.partition("#")[0]
    assert said == []
    assert [url for url in asked if not url.startswith((home, "data:", "blob:"))] == []


def violations(page: Any) -> list[str]:
    """What axe-core finds: the rule, and the first element that breaks it."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary']}" for one in found]
