"""The page of the lens of an encoder, an encoder-decoder and an image encoder, in a browser and by its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from headwise.cli.main import app
from tests.contract.lens.hosts import build_hosts
from tests.report.conftest import DESKTOP, PHONE

HOSTILE = "<script>document.body.dataset.broken = 1</script> The harbour of the town was quiet, and the sea was calm."
READ = {
    "bert": ("--prompt-file", "hostile.txt"),
    "t5": ("--source-file", "hostile.txt", "--target-file", "text.txt"),
    "vit": ("--image", "dot.png"),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Path]]:
    """By host, the JSON object and the page of a command."""
    folder, found = tmp_path_factory.mktemp("pages"), {}
    build_hosts(folder)
    (folder / "hostile.txt").write_text(HOSTILE, encoding="utf-8")
    for host, asked in READ.items():
        files = [one if one.startswith("--") else str(folder / one) for one in asked]
        told = CliRunner().invoke(
            app, ["lens", str(folder / host), *files, "--out", str(folder / f"{host}.html"), "--json"]
        )
        assert told.exit_code == 0, told.output
        found[host] = json.loads(told.stdout), folder / f"{host}.html"
    return found


def test_json_tells_each_stack(pages: Any) -> None:
    assert [one["name"] for one in pages["t5"][0]["stacks"]] == ["encoder", "decoder", "cross"]
    for result, _ in pages.values():
        for stack in result["stacks"]:
            assert all([len(row) for row in rows] == stack["heads"] for rows in stack["figures"].values())
            assert stack["figures"].keys() | stack["refused"].keys() == result["lenses"].keys()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("host", READ)
def test_a_head_opens_and_a_token_shows_what_is_looked_at(
    pages: Any, opened: Any, host: str, viewport: dict[str, int]
) -> None:
    result, path = pages[host]
    page = opened(path, viewport)
    for at, stack in enumerate(result["stacks"]):
        if len(result["stacks"]) > 1:
            page.select_option("#stack", str(at))
        page.locator("#grid button").nth(5).click()
        assert page.locator("#name").inner_text() == f"Head {stack['name']} 1.1"
        asked = page.locator("#queries" if stack["queries"] != stack["keys"] else "#keys")
        asked.locator("[data-place='2']").click()
        assert page.locator("#near .from").count() == 1 and "at 2" in page.locator("#looks").inner_text()
        page.locator("#whole").click()
        page.locator("#block").click()
        shares = [float(one.split()[0]) for one in page.locator("#best li").all_inner_texts()]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 101
        for lens in stack["figures"]:
            page.select_option("#lens", lens)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], "nothing lies beside the screen"


@pytest.mark.parametrize("host", READ)
def test_the_browser_computes_what_the_figures_say(pages: Any, opened: Any, host: str) -> None:
    """`first` of every head, by the probabilities that the page computes from queries and keys in float16."""
    result, path = pages[host]
    page = opened(path, DESKTOP)
    for at, stack in enumerate(result["stacks"]):
        rows = page.evaluate(
            """at => { use(at); return stack.heads.map((many, i) => Array.from({length: many}, (_, j) => {
                open(i, j); let sum = 0;
                for (let row = 1; row < m; row++) sum += given(pattern(), row, 0);
                return sum / (m - 1); })); }""",
            at,
        )
        torch.testing.assert_close(torch.tensor(rows), torch.tensor(stack["figures"]["first"]), atol=5e-3, rtol=2e-2)
