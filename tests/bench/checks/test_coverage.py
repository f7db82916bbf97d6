"""The table of attention read: exact where everything is read, and in the order that the methods must have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from headwise.bench.checks.coverage import coverage, table
from headwise.errors import RecipeError
from tests import tiny

KNOBS = "sinks=1, recent=2"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    folder: Path = tiny.build(tmp_path_factory.mktemp("model"))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(2, 512, (1, 200), generator=torch.Generator().manual_seed(0))
    recipes = ("exact_topk(1.0)", *(f"{name}(0.1, {KNOBS})" for name in ("exact_topk", "sparq", "random_read")))
    found = [coverage(model, recipe, ids, [ids[:, :4]]) for recipe in recipes]
    with pytest.raises(RecipeError, match="selects nothing"):
        coverage(model, "snapkv(0.2)", ids, [ids])
    assert table(found).splitlines()[2].startswith("| exact_topk(1.0) | 100.0% | 100.0% | 100.0% |")
    of_the_best = {row.recipe: row.recall for row in found}
    assert of_the_best[f"exact_topk(0.1, {KNOBS})"] == pytest.approx(1.0, abs=0.05)  # but for what is always read
    assert of_the_best[f"random_read(0.1, {KNOBS})"] < of_the_best[f"sparq(0.1, {KNOBS})"] <= 1
    return {row.recipe: (row.mass, row.read) for row in found}


def test_everything_read_is_all_of_the_attention(rows: dict[str, tuple[float, float]]) -> None:
    assert rows["exact_topk(1.0)"] == (pytest.approx(1.0, abs=1e-5), 1.0)


def test_the_budget_is_what_was_read(rows: dict[str, tuple[float, float]]) -> None:
    for name in ("exact_topk", "sparq", "random_read"):
        assert rows[f"{name}(0.1, {KNOBS})"][1] == pytest.approx(0.1, abs=0.005)


def test_exact_topk_reads_most_and_random_least(rows: dict[str, tuple[float, float]]) -> None:
    exact, sparq, drawn = (rows[f"{name}(0.1, {KNOBS})"][0] for name in ("exact_topk", "sparq", "random_read"))
    assert exact >= sparq > drawn
    assert exact < 1
