"""The page of the lens where two prompts, two models, or a text before and after a plan are compared, in a browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from headwise.cli.main import app
from tests import tiny
from tests.report.conftest import DESKTOP, PHONE

HOSTILE = (
    "<script>document.body.dataset.broken = 1</script><img src=x onerror=\"document.body.dataset.broken='1'\"> " * 4
)
PLAIN = "The king had a horse, and the horse had a king. " * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of different sizes, and two texts."""
    made = tmp_path_factory.mktemp("compared")
    tiny.build(made / "model")
    shutil.copytree(made / "model", made / "other")
    AutoModelForCausalLM.from_pretrained(made / "model", num_hidden_layers=2).save_pretrained(made / "other")
    (made / "plain.txt").write_text(PLAIN, encoding="utf-8")
    (made / "<b>hostile.txt").write_text(HOSTILE, encoding="utf-8")
    return made


def written(folder: Path, *options: str) -> tuple[dict[str, Any], Path]:
    """The JSON object and the page of a command."""
    out = folder / "page.html"
    asked = ["lens", str(folder / "model"), "--prompt-file", str(folder / "plain.txt"), "--out", str(out), "--json"]
    found = CliRunner().invoke(app, [*asked, "--measure", "previous", "--measure", "induction", *options])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout), out


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE])
def test_two_prompts_are_looked_at_in_turn_and_subtracted(folder: Path, opened: Any, viewport: dict[str, int]) -> None:
    result, path = written(folder, "--beside-prompt", str(folder / "<b>hostile.txt"))
    page = opened(path, viewport)
    options = page.locator("#side option").all_inner_texts()
    assert options == [
        f"{folder / 'model'}, plain.txt",
        f"{folder / 'model'}, <b>hostile.txt",
        "the second less the first",
    ]
    assert PLAIN in page.locator("#text").evaluate("one => one.textContent") and page.locator("#other").is_visible()
    page.select_option("#side", "1")
    assert HOSTILE in page.locator("#text").evaluate("one => one.textContent")
    page.select_option("#side", "less")
    page.select_option("#lens", "previous")
    cell = page.locator("#grid button").nth(5)
    cell.click()
    told = float(cell.get_attribute("title").split()[-1])
    first, second = (one["figures"]["previous"][1][1] for one in (result, result["beside"]))
    assert told == pytest.approx(second - first, abs=0.01)
    assert " → " in page.locator("#told").inner_text() and page.locator("#name").inner_text() == "Head 1.1"
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= viewport["width"], "nothing lies beside the screen"


def test_two_models_of_other_shapes_are_looked_at_in_turn(folder: Path, opened: Any) -> None:
    result, path = written(folder, "--beside-model", str(folder / "other"))
    page = opened(path)
    assert page.locator("#side option").count() == 2, "figures of other shapes are not subtracted"
    assert page.locator("#grid button").count() == sum(result["heads"])
    page.locator("#grid button").last.click()
    page.select_option("#side", "1")
    assert page.locator("#grid button").count() == sum(result["beside"]["heads"]) < sum(result["heads"])
    assert page.locator("#name").inner_text() == "Head 0.0" and page.locator("#other").is_hidden()


def test_what_a_plan_takes_is_crossed_out(folder: Path, opened: Any) -> None:
    result, path = written(folder, "--plan", "streaming(0.3)")
    plan, page = result["plan"], opened(path)
    page.select_option("#lens", "reach")
    page.locator("#grid button.near").first.click()
    layer, head = map(int, page.locator("#name").inner_text().removeprefix("Head ").split("."))
    kept = plan["kept"][str(layer)]
    own = kept[head // (result["heads"][layer] // len(kept))]
    assert page.locator("#text .gone").count() == plan["read"] - len(own) > 0
    assert "streaming(0.3)" in page.locator("#cost").inner_text()
    assert page.locator("#missed tr").count() == len(plan["hurt"])


def test_a_plan_that_keeps_all_takes_nothing(folder: Path) -> None:
    result, _ = written(folder, "--plan", "streaming(1.0)")
    plan = result["plan"]
    assert torch.tensor(plan["reach"]).min() > 0.9999 and abs(plan["loss"]) < 1e-4
    assert all(len(own) == plan["read"] for kept in plan["kept"].values() for own in kept)


def test_what_a_head_finds_is_its_attention_to_what_is_kept(folder: Path) -> None:
    plan = written(folder, "--plan", "streaming(0.3)")[0]["plan"]
    model = AutoModelForCausalLM.from_pretrained(folder / "model", attn_implementation="eager").eval()
    ids = AutoTokenizer.from_pretrained(folder / "model")(PLAIN, return_tensors="pt")["input_ids"]
    attention = model(ids, output_attentions=True).attentions[1][0, 3]  # layer 1, head 3
    kept = plan["kept"]["1"]
    there = torch.zeros(ids.shape[1])
    there[kept[3 * len(kept) // 4]] = 1
    there[plan["read"] :] = 1
    assert plan["reach"][1][3] == pytest.approx(float((attention[plan["read"] :] * there).sum(-1).mean()), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--plan", "streaming(0.3)", "--beside-prompt", "plain.txt"), "a page compares one thing"),
        (("--plan", "streming(0.3)"), "did you mean"),
        (("--beside-prompt", "empty.txt"), "holds no text"),
        (("--beside-model", "other", "--heads", "2.0"), "the model has layers 0 to 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    options: tuple[str, ...], why: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    found = CliRunner().invoke(app, ["lens", "model", "--prompt-file", "plain.txt", "--out", "none.html", *options])
    assert found.exit_code == 2 and why in " ".join(found.output.split())
    assert not Path("none.html").exists()
