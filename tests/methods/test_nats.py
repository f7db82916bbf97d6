"""Neural Attention Search: a cache pruned by the types of its tokens decodes as the masked parallel forward does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.engine.session import Session
from headwise.errors import RecipeError
from headwise.methods.roles import ALWAYS, GLOBAL, LOCAL, NEAR, last_seen
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.contract import dense
from tests.contract.drive import Text, decode, geometry, kept, prefill
from tests.methods.views import rope

PROMPT, STEPS, WINDOW = 150, 100, 16
SENTENCE = f"nats_prefill({WINDOW}) | nats(0.6, window={WINDOW}) | nats_read(window={WINDOW})"
TURN = rope(32)


def plan_of(head: torch.Tensor, sentence: str = SENTENCE) -> Plan:
    """A plan whose three parts tell types by one head [layers, KV heads, d + 1, 3]."""
    names = ("nats_prefill.head", "nats.head", "nats_read.head")
    return replace(Plan.uniform(geometry(), sentence), calibration={name: head for name in names})


def random_head(bias: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    head = torch.randn(2, 2, 33, 3, generator=torch.Generator().manual_seed(2))
    head[:, :, -1] = torch.tensor(bias)
    return head


def drawn(text: Text, head: torch.Tensor) -> torch.Tensor:
    """What each query sees, bool [L, 1, h, T, T], token by token from the definition."""
    layers, _, heads, total, _ = text.k.shape
    keys = TURN.unrotate(text.k, torch.arange(total))
    seen = torch.zeros(layers, 1, heads, total, total, dtype=torch.bool)
    for layer in range(layers):
        for h in range(heads):
            weights = head[layer, h]
            types = (keys[layer, 0, h] @ weights[:-1] + weights[-1]).argmax(-1).tolist()
            for j, kind in enumerate(types):
                coming = [i for i in range(j + 1, total) if types[i] == GLOBAL]
                last = {GLOBAL: total, LOCAL: min(coming, default=total), NEAR: j + WINDOW}[kind]
                seen[layer, 0, h, j : last + 1, j] = True
    return seen


@pytest.mark.parametrize("chunks", [(PROMPT,), (60, 50, 40)])
def test_decoding_with_the_pruned_cache_equals_the_masked_parallel_forward(chunks: tuple[int, ...]) -> None:
    """Row 175, to 1e-5, by a random head: prompt and 100 new tokens, over an eviction in the midst of them."""
    text, head = Text.random(geometry(), PROMPT + STEPS), random_head()
    visible = drawn(text, head)
    session = Session(plan_of(head), ropes=[TURN] * 2)
    outs = [prefill(session, text, chunks), decode(session, text, PROMPT, STEPS)]
    torch.testing.assert_close(torch.cat(outs, dim=3).double(), dense.attention(text, 0, visible), atol=1e-5, rtol=1e-5)
    assert any(record.step >= len(chunks) for record in session.ledger.evictions), "while decoding, too"
    stored = [head for layer in kept(session) for row in layer for head in row]
    assert max(map(len, stored)) < 0.8 * (PROMPT + STEPS), "what no query will see again has left"


def test_after_an_eviction_exactly_what_the_next_query_sees_is_stored() -> None:
    text, head = Text.random(geometry(), PROMPT), random_head()
    session = Session(plan_of(head), ropes=[TURN] * 2)
    prefill(session, text, [PROMPT])
    longer = Text(*(torch.cat((x, x[..., :1, :]), dim=3) for x in vars(text).values()))
    visible = drawn(longer, head)[..., PROMPT, :PROMPT]
    visible[..., PROMPT - 1] = True  # recent=1
    for layer, rows in enumerate(kept(session)):
        assert rows[0] == [own.nonzero()[:, 0].tolist() for own in visible[layer, 0]]


def test_all_global_is_dense() -> None:
    """Row 175, to 1e-5."""
    text = Text.random(geometry(), PROMPT + 10)
    session = Session(plan_of(random_head((1e4, 0, 0)), SENTENCE.replace("0.6", "1.0")), ropes=[TURN] * 2)
    outs = torch.cat([prefill(session, text, [PROMPT]), decode(session, text, PROMPT, 10)], dim=3)
    torch.testing.assert_close(outs.double(), dense.all_causal(text), atol=1e-5, rtol=1e-5)


def test_lifetimes() -> None:
    types = torch.tensor([[LOCAL, GLOBAL, LOCAL, NEAR, LOCAL, GLOBAL, LOCAL]])
    places = torch.tensor([[0, 3, 4, 7, 8, 9, 20]])
    assert last_seen(types, places, 5).tolist() == [[3, ALWAYS, 9, 12, 9, ALWAYS, ALWAYS]]


@pytest.mark.parametrize("sentence", ["nats(window=0)", "nats_read(stride=0)", "nats_prefill(0)"])
def test_wrong_knobs_are_named(sentence: str) -> None:
    with pytest.raises(RecipeError, match="must be greater than or equal to 1, got 0"):
        Recipe.parse(sentence)
