"""Which methods go together: every pair of two parts run over a small random text, or the reason of its refusal.

`python -m headwise.bench.compose docs/data/composition.json` writes what came of it, and `make docs` the page.
"""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any, TypedDict

import torch

from headwise.engine.rehearsal import evict_waiting, listen, passages
from headwise.engine.session import Session
from headwise.errors import HeadwiseError
from headwise.files import write_text
from headwise.forms import Scoring
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import PARTS, methods
from headwise.shapes import Mark

PROMPT, CHUNKS, STEPS = 64, 2, 2
GEOMETRY = Geometry.uniform(4, 2, 16, 16, (None, None), 4096)


class Outcomes(TypedDict):
    """What came of a run over all pairs. refused: the pairs, as recipes, by the reason."""

    pairs: int
    refused: dict[str, list[str]]


def together(recipe: Recipe) -> str:
    """Run a prompt in chunks and some new tokens under the recipe: "" when it works, else why it is refused.

    Raises AssertionError for outputs that are not finite: such a pair neither works nor is refused.
    """
    random = torch.Generator().manual_seed(0)

    def drawn(layer: int, tokens: int) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, Scoring]:
        q, k, v = (torch.randn(1, heads, tokens, 16, generator=random) for heads in (4, 2, 2))
        return layer, q, k, v, Scoring(0.25)

    try:
        kinds = recipe.steer.kinds if recipe.steer is not None else ()
        session = Session(Plan.uniform(GEOMETRY, recipe), marks=[Mark(kind, 8, 16) for kind in kinds])
        for phase, tokens in (*(("prefill", PROMPT // CHUNKS),) * CHUNKS, *(("decode", 1),) * STEPS):
            ids = torch.zeros(1, tokens, dtype=torch.int64)
            session.begin(tokens, "prefill" if phase == "prefill" else "decode", total=PROMPT, ids=ids)
            outs = [session.step(*drawn(layer, tokens)) for layer in range(len(GEOMETRY.layers))]
            for one in passages(session):
                outs += [listen(session, one, *drawn(layer, one.tokens)) for layer in range(len(GEOMETRY.layers))]
            evict_waiting(session)
            assert all(out.isfinite().all() for out in outs), f"'{recipe}' gives outputs that are not finite"
    except HeadwiseError as refusal:
        return str(refusal)
    return ""


def recipe_of(*names: str) -> Recipe:
    """The recipe of these methods, by name, with a budget of a third where they have one."""
    phrases = []
    known: dict[str, Any] = {name: cls for part in PARTS for name, cls in methods(part).items()}
    for name in names:
        budgeted = "budget" in known[name].__dataclass_fields__
        phrases.append(f"{name}(0.33, sinks=2, recent=8)" if budgeted else name)
    if any(known[name].part == "budget" for name in names) and not any(known[name].part == "evict" for name in names):
        phrases.append("snapkv(0.33, sinks=2, recent=8)")
    return Recipe.parse(" | ".join(phrases))


def refusal_of(*names: str) -> str:
    """Why these methods do not go together, as a recipe or when it is run; "" where they do."""
    try:
        recipe = recipe_of(*names)
    except HeadwiseError as refusal:
        return str(refusal)
    return together(recipe)


def matrix() -> dict[tuple[str, str], dict[tuple[str, str], str]]:
    """For every two parts, the outcome of each pair of their methods: "" or the reason of the refusal."""
    return {
        (one, other): {(a, b): refusal_of(a, b) for a in methods(one) for b in methods(other)}
        for one, other in combinations(PARTS, 2)
    }


def outcomes(found: dict[tuple[str, str], dict[tuple[str, str], str]]) -> Outcomes:
    """How many pairs ran, and the refused ones under the reason of each."""
    refused: dict[str, list[str]] = {}
    for cells in found.values():
        for pair, reason in cells.items():
            if reason:
                refused.setdefault(reason, []).append(" | ".join(pair))
    return Outcomes(pairs=sum(map(len, found.values())), refused=refused)


def page(made: str, data: Outcomes) -> str:
    """What is refused as Markdown, and that the rest works."""
    count = sum(map(len, data["refused"].values()))
    lines = ["# What goes together", "", made]
    lines += [
        f"Every two methods of different parts were run together over a prompt of {PROMPT} tokens in {CHUNKS} chunks "
        f"and {STEPS} new tokens, each with a budget of a third where it has one. Of {data['pairs']} pairs, "
        f"{data['pairs'] - count} work; {count} are refused, with the reason:",
        "",
    ]
    for reason, pairs in sorted(data["refused"].items()):
        lines.append(f"- {', '.join(f'`{pair}`' for pair in pairs)}: {reason}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), json.dumps(outcomes(matrix()), indent=1, ensure_ascii=False) + "\n")
