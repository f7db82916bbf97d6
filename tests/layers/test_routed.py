"""Routed heads, experts and their balance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headwise.errors import RecipeError
from headwise.layer_parts import parse_feed
from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer
from headwise.layers.routing import imbalance

DIMS = Dims(width=24, heads=4, head_dim=6)


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_all_heads_on_with_even_shares_are_plain_attention(shared: int) -> None:
    """Row 2: to 1e-6."""
    made: Any = AttentionLayer(f"routed_heads({shared}, top={4 - shared})", DIMS)
    plain: Any = AttentionLayer("", DIMS)
    with torch.no_grad():
        for name, one in made.out.named_parameters():
            if name != "o.weight":
                one.zero_()
    plain.load_state_dict({name: one for name, one in made.state_dict().items() if name in plain.state_dict()})
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(made(x)[0], plain(x)[0], rtol=1e-6, atol=1e-6)


def test_a_token_turns_on_its_shared_heads_and_so_many_others() -> None:
    made: Any = AttentionLayer("routed_heads(1, top=2)", DIMS)
    gates = made.out.gates(torch.randn(3, 50, 24))
    assert torch.equal((gates > 0).sum(-1), torch.full((3, 50), 3)) and (gates[..., 0] > 0).all()
    assert (gates[..., 1:] > 0).any(0).any(0).all()
    with pytest.raises(RecipeError, match="4 of 4 heads of which 1 are shared"):
        AttentionLayer("routed_heads(1, top=4)", DIMS)


def test_imbalance_is_least_where_tokens_are_spread_evenly() -> None:
    even = torch.eye(4).repeat(8, 1)
    alike = torch.eye(4)[:1].repeat(32, 1)
    assert float(imbalance(even, 1)) == 1.0 and float(imbalance(alike, 1)) == 4.0


def test_texts_of_one_token_are_sent_as_by_an_ordinary_router() -> None:
    """Row 17: where a token is like itself alone, the graph of tokens is the identity; to 1e-6."""
    graph: Any = parse_feed("similar_experts(4, top=2)").build(24, 16)
    plain: Any = parse_feed("experts(4, top=2)").build(24, 16)
    plain.load_state_dict({name: one for name, one in graph.state_dict().items() if name != "like.weight"})
    x, alone = torch.randn(2, 9, 24), torch.arange(9).expand(2, -1)
    torch.testing.assert_close(graph(x, alone, None)[0], plain(x, alone, None)[0], rtol=1e-6, atol=1e-6)


def test_a_graph_of_tokens_spreads_a_choice_over_tokens_that_are_alike() -> None:
    """Row 17: shares after mixing lie between those before, so that their entropy over a text is not above."""
    torch.manual_seed(0)
    graph: Any = parse_feed("similar_experts(4)").build(24, 16)
    x = torch.randn(1, 40, 24)
    own = graph.router(x)
    asked: list[torch.Tensor] = []
    graph.answered = lambda x, shares: asked.append(shares) or x
    graph(x, torch.zeros(1, 40, dtype=torch.int64), None)
    assert (asked[0].amax(1) <= own.amax(1) + 1e-6).all() and asked[0].var(1).sum() < own.var(1).sum()


@pytest.mark.parametrize(("text", "told"), [("experts(2, top=3)", "top=3 of 2 experts"), ("expert", "did you mean")])
def test_feeds_that_mean_nothing_are_refused(text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        parse_feed(text)


def test_experts_that_are_alike_are_one_expert_and_store_as_much() -> None:
    """Row 9: whatever the router says; keys and values of shared ones are those of one expert."""
    one: Any = AttentionLayer("", Dims(width=24, heads=2, head_dim=6))
    two: Any = AttentionLayer("gqa(2) | mixed_experts(2)", DIMS)
    own = dict(one.state_dict())
    for name in ("project.q.weight", "out.o.weight"):
        across = 0 if name.startswith("project") else 1
        own[name] = own[name].unflatten(across, (2, 6)).repeat_interleave(2, across).flatten(across, across + 1)
    two.load_state_dict(own | {"out.router.proj.weight": torch.randn(2, 24)})
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(two(x)[0], one(x)[0], rtol=1e-5, atol=1e-6)
    assert two(x)[1].nbytes == one(x)[1].nbytes
    with pytest.raises(RecipeError, match="4 heads are no multiple of 3 experts"):
        AttentionLayer("mixed_experts(3)", DIMS)
