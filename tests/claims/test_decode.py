"""Rows 139 and 149: long generations in which early results are used again and again, on the embedded model.

The tokens of a document come as a generation does, a few at a time, after a prompt of its first tokens. Two of its
facts are asked for every 300 tokens and answered in the text, so that attention returns to them; in the end they are
asked again. Each docstring gives the figures measured when it was written.
"""

from __future__ import annotations

import pytest
import torch

import headwise
from headwise.seams.transformers.drive import feed, generate, prefill

from .conftest import Bench

PROMPT, EVERY = 64, 300


def chain(bench: Bench, recipe: str, tokens: int) -> tuple[float, int]:
    """Share of the reused facts right at the end, and the most tokens that any head held after the prompt."""
    right = asked = most = 0
    for document in bench.documents(tokens, 2):
        reused = document.asked[:2]
        cache = headwise.Cache(bench.model, recipe)
        prefill(bench.model, cache, document.ids[:, :PROMPT], None)
        whole = (document.ids.shape[1] - PROMPT) // EVERY * EVERY
        pieces = document.ids[:, PROMPT : PROMPT + whole].split(EVERY, dim=1)
        for place, piece in enumerate(pieces):
            steps = [piece]
            if 1 <= place < len(pieces) - 1:  # both facts have been told, and a stretch without them follows
                steps += [torch.cat((question, answer), dim=1) for question, answer in reused]
            for ids in steps:
                feed(bench.model, cache, ids)
                assert cache.session is not None
                most = max(most, *(int(cache.session.lengths(layer).max()) for layer in range(8)))
        for question, answer in reused:
            right += torch.equal(generate(bench.model, cache.fork(), question, answer.shape[1]), answer)
            asked += 1
    return right / asked, most


@pytest.mark.parametrize("name", ["lazy", "raas"])
def test_lazy_and_raas_of_everything_are_dense(bench: Bench, name: str) -> None:
    document = bench.documents(600, 1)[0]
    out = []
    for recipe in ("", f"{name}(4000)"):
        cache = headwise.Cache(bench.model, recipe)
        prefill(bench.model, cache, document.ids[:, :PROMPT], None)
        out.append(feed(bench.model, cache, document.ids[:, PROMPT:]))
    torch.testing.assert_close(out[1], out[0])


@pytest.mark.parametrize("recipe", ["lazy(256)", "raas(256)"])
def test_lazy_149_and_raas_139_hold_no_more_than_their_budget_at_any_step(bench: Bench, recipe: str) -> None:
    """256 of about 1000 tokens, and what comes between two evictions. What they answer is not claimed here, where each
    answer stands in the text again and again, so that a window has it, too."""
    _, most = chain(bench, recipe, 1000)
    assert most <= 256 + 64 + 16
