"""What a session tells methods and users of attention beside sinks: masses, views and lost mass are the model's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from headwise.cache import extras
from headwise.engine.session import Session
from headwise.methods.evict import Evict
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract import drive
from tests.contract.drive import SCALE, Text, geometry, run

TOKENS = 60
SHAPE = replace(geometry(8, 4), layers=tuple(replace(layer, sinks=True) for layer in geometry(8, 4).layers))


def probabilities(text: Text, layer: int) -> torch.Tensor:
    """Causal probabilities of keys [h, g, t, t] beside the sinks, float64."""
    q, k = text.q[layer, 0].unflatten(0, (4, 2)).double(), text.k[layer, 0].double()
    s = torch.einsum("hgtd,hnd->hgtn", q, k) * SCALE
    s = s.masked_fill(torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), -torch.inf)
    logits = drive.scoring(SHAPE, layer).sinks.logits.double()[..., None, None].expand(*s.shape[:3], 1)
    return torch.cat((s, logits), -1).softmax(-1)[..., :-1]


@pytest.mark.parametrize("sentence", ["h2o(0.9, sinks=2, recent=6)", "h2o(0.9, sinks=2, recent=6) | int8"])
@pytest.mark.parametrize("chunks", [(60,), (35, 25)])
def test_mass_is_what_keys_get_beside_the_sinks(chunks: tuple[int, ...], sentence: str) -> None:
    """With the log-sum-exp that the queries read with, and where it is not kept."""
    text = Text.random(SHAPE, TOKENS)
    session, _ = run(SHAPE, Recipe.parse(sentence), text, chunks, 0)
    for layer, (group,) in enumerate(session.layers):
        whole = probabilities(text, layer).sum((1, 2))
        for lane in range(4):
            at = group.store.positions(lane).long()
            found = extras.mass(group.store, lane, lane + 1)[0].double()
            torch.testing.assert_close(found, whole[lane, at], atol=0.02, rtol=0.02)


@dataclass(frozen=True)
class Looking(Evict):
    """Keeps the first tokens, and what it saw of them."""

    needs: ClassVar[frozenset[str]] = frozenset({"keys", "queries"})
    seen: ClassVar[dict[tuple[int, tuple[int, ...]], torch.Tensor]] = {}

    def score(self, view: Any) -> torch.Tensor:
        self.seen[view.layer, view.heads] = view.observe(8)
        return -view.positions.float()


def test_views_show_and_lost_mass_counts_what_keys_get_beside_the_sinks() -> None:
    """In groups of heads that are not neighbours, and of a layer with others."""
    text = Text.random(SHAPE, TOKENS)
    looking = Recipe(evict=Looking(20, sinks=0, recent=0))
    row = (looking, Recipe(), looking, Recipe())
    session = Session(Plan(SHAPE, (row, row[::-1])))
    drive.prefill(session, text, [TOKENS])
    for layer, heads in enumerate(((0, 2), (1, 3))):
        p = probabilities(text, layer)[list(heads)]
        found = Looking.seen[layer, heads].double()
        torch.testing.assert_close(found, p[:, :, -8:], atol=1e-5, rtol=1e-5)
        (record,) = [one for one in session.ledger.evictions if one.layer == layer]
        lost = p[:, :, -32:, 20:].sum((1, 2, 3)) / (2 * 32)
        torch.testing.assert_close(torch.tensor(record.lost_mass).double(), lost, atol=1e-5, rtol=1e-5)
