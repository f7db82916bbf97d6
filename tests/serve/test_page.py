"""The page of a server in a real browser: a conversation is written and stopped, by keyboard too, what heads keep is
drawn as it is, and nothing that is said becomes markup or is asked of another server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from headwise.serve.guard import Guard, Key  # noqa: E402
from headwise.serve.rows import Rows  # noqa: E402
from tests.serve.server import Running, running  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
HOSTILE = "<img src=x onerror=\"document.body.dataset.broken='1'\"><b>bold</b> </script> &amp; ‮ words of no use"
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def server(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> Iterator[Running]:
    with running(model, tokenizer, rows) as one:
        yield one


@pytest.fixture
def page(browser: Any, server: Running, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, opened; an error of its script, and a request to anywhere else, fail the test."""
    wrong: list[str] = []
    one = browser.new_page(viewport=getattr(request, "param", DESKTOP))
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.on("console", lambda said: wrong.append(said.text) if said.type == "error" and "400" not in said.text else None)
    one.on("request", lambda asked: None if asked.url.startswith((server.url, "data:")) else wrong.append(asked.url))
    one.goto(server.url)
    sync_api.expect(one.locator("#model")).to_have_text("tiny")
    yield one
    one.close()
    assert not wrong


def ask(page: Any, question: str) -> None:
    page.keyboard.type(question)  # the question has the focus from the start
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#send")).to_be_enabled(timeout=60_000)


def test_an_answer_is_that_of_the_api_and_every_head_is_drawn(page: Any, server: Running, tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("The king had a horse. " * 30, encoding="utf-8")
    page.set_input_files("#file", tmp_path / "novel.txt")
    sync_api.expect(page.locator("#state")).to_contain_text("novel.txt is the document")
    page.select_option("#keeps", "plan:few")
    page.locator("#question").focus()
    ask(page, "What had the king?")
    messages = [
        {"role": "system", "content": ("The king had a horse. " * 30).strip()},
        {"role": "user", "content": "What had the king?"},
    ]
    body = {"model": "tiny", "messages": messages, "temperature": 0, "headwise": {"plan": "few"}}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert page.locator("#said li.assistant span").inner_text() == answer["choices"][0]["message"]["content"].lstrip()
    usage, geometry = answer["usage"], server.served.seam.geometry
    assert f"{usage['prompt_tokens']} read" in page.locator("#tokens").inner_text()
    assert page.locator("#pace").inner_text().endswith("tokens/s")
    cells = page.locator("#heads td")
    assert cells.count() == sum(layer.kv_heads for layer in geometry.layers)
    seen = usage["total_tokens"] - 1  # the last token is not read any more
    found = [re.search(r"(\d+) of (\d+) tokens", cells.nth(i).get_attribute("title")) for i in range(cells.count())]
    assert {int(one[2]) for one in found if one} == {seen}
    assert all(one is not None and int(one[1]) < seen / 2 for one in found), "snapkv(0.3) keeps less than a half"
    share = page.locator("#kept-told").inner_text()
    assert f"{100 * usage['kv_bytes'] / usage['dense_kv_bytes']:.0f} %" in share


def test_what_is_said_stays_text(page: Any) -> None:
    page.fill("#document", HOSTILE)
    page.locator("#question").focus()
    ask(page, HOSTILE)
    assert page.locator("#said li.user span").inner_text() == HOSTILE
    assert page.locator("#said img, #said b b").count() == 0
    assert page.evaluate("document.body.dataset.broken") is None


def test_a_refusal_is_shown_and_the_question_can_be_put_anew(page: Any) -> None:
    page.select_option("#keeps", "own")
    page.fill("#recipe", "snapkw(0.2)")
    page.locator("#question").focus()
    ask(page, "Why?")
    assert "did you mean 'snapkv'" in page.locator("#said li.wrong span").inner_text()
    page.fill("#recipe", "snapkv(0.2)")
    page.locator("#question").focus()
    ask(page, "Why now?")
    assert page.locator("#said li.assistant").count() == 1


@pytest.mark.parametrize("page", [PHONE, DESKTOP], indirect=True, ids=["phone", "desktop"])
def test_nothing_is_wider_than_the_screen_and_all_is_reached_by_keyboard(page: Any) -> None:
    ask(page, "word " * 60)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"send", "clear", "SUMMARY", "document", "file", "keeps", "question"} <= reached
    names = "[...document.querySelectorAll('input,select,textarea')].filter(x => !x.labels.length).map(x => x.id)"
    assert page.evaluate(names) == [], "every field has a label"


def test_escape_stops_an_answer_and_frees_it(page: Any, server: Running) -> None:
    page.fill("#document", "many words of a long text " * 60)
    page.locator("#question").focus()
    page.keyboard.type("On?")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    sync_api.expect(page.locator("#state")).to_have_text("Stopped.")
    for _ in range(100):
        if server.scheduler.idle:
            return
        page.wait_for_timeout(50)
    raise AssertionError("the request still runs")


def test_a_page_of_a_server_with_keys_asks_for_one(
    browser: Any, model: PreTrainedModel, tokenizer: Any, rows: Rows
) -> None:
    with running(model, tokenizer, rows, Guard([Key(name="me", key="secret")])) as closed:
        one = browser.new_page()
        one.goto(closed.url)
        sync_api.expect(one.locator("#secret")).to_be_visible()
        one.fill("#key", "secret")
        one.locator("#question").focus()
        sync_api.expect(one.locator("#model")).to_have_text("tiny")
        one.close()
