"""Generations of thousands of tokens: the cache is bounded at every step, not only after evictions."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from headwise import Cache
from headwise.cache.pages import PAGE
from headwise.engine.group import DECODE_INTERVAL
from headwise.engine.session import Session
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.drive import feed
from tests.contract.drive import Text, decode, geometry, prefill

PROMPT, STEPS = 100, 3000


@pytest.mark.parametrize("recipe", ["streaming({})", "h2o({})", "raas({}) | int8", "tova({}) | ada"])
def test_a_budget_in_tokens_bounds_a_long_generation(recipe: str) -> None:
    """At most the budget and the tokens since the last eviction, and the bytes of a thousand steps are those of all."""
    text = Text.random(geometry(), PROMPT + STEPS)
    session = Session(Plan.uniform(geometry(), Recipe.parse(recipe.format(96))))
    prefill(session, text, [PROMPT])
    held = []
    for step in range(STEPS):
        decode(session, text, PROMPT + step, 1)
        heads = session.lengths(0).shape[1]
        assert all(int(session.lengths(layer).sum()) <= heads * (96 + DECODE_INTERVAL) for layer in range(2))
        held.append(session.nbytes())
    assert max(held[-1000:]) <= 1.05 * max(held[:1000])
    assert max(held) < 0.15 * session.dense_bytes()


def test_a_share_bounds_a_generation_by_the_share_of_what_was_seen() -> None:
    text = Text.random(geometry(), 1100)
    session = Session(Plan.uniform(geometry(), "tova(0.2, recent=8)"))
    prefill(session, text, [PROMPT])
    for step in range(1000):
        decode(session, text, PROMPT + step, 1)
        assert int(session.lengths(1).max()) <= 0.2 * (PROMPT + step + 1) + DECODE_INTERVAL


def test_ten_thousand_generated_tokens_stay_within_bytes_at_every_step() -> None:
    """Of a real model, a token at a time, as `generate` does it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=16384,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    cache = Cache(model, "tova('16KiB') | int8")
    logits = feed(model, cache, torch.randint(64, (1, PROMPT)))
    on_top = (DECODE_INTERVAL + PAGE) * (2 * 16 + 2 * 4 + 4)  # keys, values, their scales, positions
    for _ in range(10_000):
        logits = feed(model, cache, logits.argmax(-1)[:, None])
        assert cache.nbytes <= 16 * 1024 + on_top
    assert cache.get_seq_length() == PROMPT + 10_000
    kept = {record.kept for record in cache.session.ledger.evictions}
    assert len(kept) == 1, "every eviction came back to the same count"
    assert cache.nbytes < 0.02 * cache.session.dense_bytes()
