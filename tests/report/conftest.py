"""A real browser, in which pages are opened."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium")
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens pages; an error of a script, a request to anywhere, or a script of a text that ran, fails the test."""
    wrong: list[str] = []
    pages = []

    def at(path: Path, viewport: dict[str, int] = DESKTOP) -> Any:
        one = browser.new_page(viewport=viewport)
        one.on("pageerror", lambda error: wrong.append(str(error)))
        one.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        one.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
        one.goto(path.as_uri())
        pages.append(one)
        return one

    yield at
    for one in pages:
        assert one.evaluate("document.body.dataset.broken") is None, "a script of a text ran"
        one.close()
    assert not wrong
