"""Every two methods of different parts work together, or are refused with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import pytest

from headwise.bench.compose import outcomes, page, recipe_of, refusal_of, together
from headwise.recipe import Recipe
from headwise.registry import PARTS, methods


@pytest.mark.parametrize("select", methods("select"))
def test_whole_sentences_work(select: str) -> None:
    """Each selection with two prefill patterns, an eviction and a codec each; in turn, so that all names come up."""
    place = list(methods("select")).index(select)
    compress = [name for name, cls in methods("compress").items() if cls().span is None]  # the others evict nothing
    rooms = [list(methods("prefill")), list(methods("evict")), compress]
    for turn in (2 * place, 2 * place + 1):
        names = [room[turn % len(room)] for room in rooms]
        assert together(recipe_of(*names, select)) == "", names


def test_the_page_is_of_todays_methods() -> None:
    found = json.loads((Path(__file__).parents[2] / "docs" / "data" / "composition.json").read_text(encoding="utf-8"))
    pairs = sum(len(methods(one)) * len(methods(other)) for one, other in combinations(PARTS, 2))
    assert found["pairs"] == pairs, "run python -m headwise.bench.compose docs/data/composition.json, then `make docs`"
    for pair in chain.from_iterable(found["refused"].values()):
        assert refusal_of(*pair.split(" | ")), pair


def test_a_compression_of_all_heads_together_is_refused_beside_an_eviction_and_goes_with_the_rest() -> None:
    assert "leave one of the two out" in together(recipe_of("streaming", "xkv"))
    assert together(recipe_of("a_shape", "xkv", "quest")) == ""


def test_a_refusal_is_told_with_its_reason() -> None:
    streaming = methods("evict")["streaming"]
    whole = type("Whole", (streaming,), {"card": replace(streaming.card, chunking="whole_prompt")})
    reason = together(Recipe(evict=whole(0.5)))
    assert "whole prompt" in reason
    cells = {("streaming", "uniform"): reason, ("streaming", "ada"): "", ("streaming", "pyramid"): ""}
    cells = {(a, b): cells.get((a, b), "") for a in methods("evict") for b in methods("budget")}
    text = page("", outcomes({("evict", "budget"): cells}))
    assert f"Of {len(cells)} pairs, {len(cells) - 1} work" in text
    assert text.splitlines()[-1] == f"- `streaming | uniform`: {reason}"
