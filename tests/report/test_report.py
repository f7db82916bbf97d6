"""The table, the page and the pictures are made of a run's JSON object alone, whatever text it holds."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from headwise.report.page import page
from headwise.report.pictures import main, overview
from headwise.report.table import columns, notes

VOID = {"meta", "img"}


def row(recipe: str, role: str, share: float, right: int | None = 1) -> dict:
    """A made-up row of 2 layers of 3 heads and 2 questions."""
    verdicts = [] if right is None else [right > 0, right > 1]
    answers: list[dict] = [{"ask": f"<q{i}>", "got": f"<b>& {i}"} for i in range(2)]
    for place, verdict in enumerate(verdicts):
        answers[place] |= {"depth": place / 1, "expected": " 12.", "right": verdict}
    return {
        "recipe": recipe, "role": role, "plan_digest": "d", "recipes": {recipe: 6},
        "prefill_s": 1.25, "decode_tokens_per_s": 20.0,
        "cache_bytes": round(2**20 * share), "predicted_bytes": round(2**20 * share), "dense_bytes": 2**20,
        "peak_bytes": 2**20, "kept_share": share, "kept": [[round(1000 * share)] * 3] * 2,
        "lost_mass": [[0.0, 0.25, 1 - share]] * 2, "backends": {"sdpa": 2}, "answers_right": right,
        "answers_total": None if right is None else 2, "perplexity": None if right is None else 7.5,
        "answers": answers, "continued": "",
    }  # fmt: skip


def result(right: int | None = 1) -> dict:
    rows = [row("dense", "dense", 1.0, right), row("snapkv(0.25)", "plan", 0.25, right)]
    rows[1]["recipes"] = {"dense": 2, "snapkv(9)": 4}
    if right is not None:
        rows += [row("random(250)", "baseline", 0.25, right), row("streaming(1.0)", "control", 1.0, right)]
    geometry = {"layers": 2, "query_heads": 6, "kv_heads": 3, "key_width": 8, "value_width": 8, "max_positions": 2000}
    return {
        "model": "/some/<model>", "prompt_tokens": 1000, "rows": rows, "title": "a <title>", "template": "<t>",
        "questions": ["<q0>", "<q1>"], "continuation_tokens": 0 if right is None else 255, "seed": 0, "chunk": 2048,
        "max_new_tokens": 64, "dtype": "bfloat16", "device": "cpu", "model_fingerprint": "f", "geometry": geometry,
        "versions": {"python": "3"}, "machine": {"processor": "p", "cores": 2, "threads": 1, "system": "s",
        "accelerator": "none"},
    }  # fmt: skip


class Outline(HTMLParser):
    """Checks that tags close in order; counts images and gathers the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.alternatives: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.alternatives.append(dict(attrs)["alt"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Outline:
    outline = Outline()
    outline.feed(text)
    assert not outline.open
    return outline


def test_the_page_of_the_main_job() -> None:
    outline = read(page(result()))
    assert outline.tags.count("img") == 2 * 2
    assert all("snapkv(0.25)" in told or "random(250)" in told for told in outline.alternatives)
    for said in (
        "a <title>",
        "snapkv(0.25)",
        "1/2",
        "✓",
        "✗",
        "A/A control passed",
        "255 tokens",
        "4 heads snapkv(9)",
    ):
        assert said in outline.text
    assert not set(outline.tags) & {"script", "link", "b", "t", "q0"}


def test_the_page_of_a_model_whose_layers_differ() -> None:
    unlike = result()
    unlike["geometry"]["kv_heads"] = [3, 1]
    for one in unlike["rows"]:
        one["kept"], one["lost_mass"] = [[250] * 3, [250]], [[0.0, 0.25, 0.0], [0.75]]
    told = read(page(unlike)).text
    assert "6 query heads, 3, 1 KV heads" in told and "most in layer 1, head 0 (75.0%)" in told
    drawn = [text.get_text() for axes in overview(unlike).axes for text in axes.texts]
    assert drawn.count("25%") == 4


def test_the_page_of_a_text_of_ones_own() -> None:
    outline = read(page(result(None)))
    assert "<b>& 1" in outline.text
    assert "perplexity" not in outline.text
    assert "✓" not in outline.text


def test_columns_that_say_nothing_are_left_out() -> None:
    assert [title for title, _ in columns(result()["rows"])][-3:] == ["answers", "perplexity", "tokens kept"]
    assert "answers" not in dict(columns(result(None)["rows"]))
    assert any("random(250) 262144 B" in line for line in notes(result()))
    assert len(notes(result(None))) == 1


@pytest.mark.parametrize("right", [2, None])
def test_the_picture_of_a_run(tmp_path: Path, right: int | None) -> None:
    (tmp_path / "run.json").write_text(json.dumps(result(right)))
    main([str(tmp_path / "run.json"), str(tmp_path / "p.png")])
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 1000


def test_a_picture_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[1]")
    command = [sys.executable, "-m", "headwise.report.pictures", str(tmp_path / "run.json"), str(tmp_path / "p.png")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "run.json is not the output of `headwise run --json`" in found.stderr
    assert "Traceback" not in found.stderr
