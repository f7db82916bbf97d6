"""A batch of left-padded rows against each row alone: they keep the same tokens and give the same outputs.

Where sums are taken in another order in a batch, a choice between tokens that score nearly alike may fall otherwise.
Such a tie is of one text, an error of every text: what differs is tried again on others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from headwise.engine.session import Session
from headwise.errors import HeadwiseError
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract.drive import Text, decode, feed, geometry, kept
from tests.fuzz import Machine, of_function
from tests.fuzz.recipes import recipes

OTHERS, MOST = 8, 2  # other texts to try, and of how many a difference is a tie
CLOSE = 2e-4


def difference(recipe: Recipe, lengths: Sequence[int], steps: int, seed: int) -> str:
    """Where a row of a batch differs from the row alone, after a prompt and so many steps; "" where none does."""
    longest, plan = max(lengths), Plan.uniform(geometry(), recipe)
    text = Text.random(geometry(), longest + steps, rows=len(lengths), seed=seed)
    live = torch.arange(longest, 0, -1) <= torch.tensor(lengths)[:, None]
    batch = Session(plan, rows=len(lengths))
    feed(batch, text, 0, longest, "prefill", live=live)
    outs = decode(batch, text, longest, steps)
    for row, length in enumerate(lengths):
        alone, own = Session(plan), text.rows([row]).since(longest - length)
        feed(alone, own, 0, length, "prefill")
        want = decode(alone, own, length, steps)
        if kept(alone) != [[layer[row]] for layer in kept(batch)]:
            return f"row {row} keeps other tokens"
        far = (outs[:, row] - want[:, 0]).abs().max()
        if not far < CLOSE:
            return f"row {row} gives other outputs, by {far:.2g}"
    return ""


def a_batch_is_its_rows(recipe: str, lengths: list[int], steps: int, seed: int) -> None:
    """What differs on one text is a tie unless it differs on others too."""
    try:
        told = difference(Recipe.parse(recipe), lengths, steps, seed)
    except HeadwiseError as error:
        assert "keep" in str(error), error  # a number of tokens below what is always kept
        return
    if told:
        others = [difference(Recipe.parse(recipe), lengths, steps, seed + i + 1) for i in range(OTHERS)]
        again = [one for one in others if one]
        assert len(again) <= MOST, f"{recipe}, rows of {lengths}: {told}; on other texts {again}"


def machines() -> dict[str, Machine]:
    """By name."""
    return {
        "rows": of_function(
            a_batch_is_its_rows,
            recipe=recipes().map(str),
            lengths=st.lists(st.sampled_from([1, 2, 15, 16, 17, 40, 70]), min_size=2, max_size=3),
            steps=st.sampled_from([3, 66, 72]),
            seed=st.integers(0, 2**16),
        )
    }
