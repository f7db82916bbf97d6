"""What selections note of a prompt in two chunks and of steps, and how they go by it, by brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from headwise.attention.view import Memory
from headwise.methods.densities import plain_share, share
from headwise.methods.select.act_qkv import ActQKV
from headwise.methods.select.ltri import Ltri
from headwise.methods.select.recent_read import RecentRead
from headwise.methods.select.retrieval_attention import RetrievalAttention
from tests.methods.views import changed, make_view, remembering, thinned

TOKENS, PROMPT = 80, 78  # `remembering` takes a step of one token, and another, after the prompt


def test_ltri_notes_the_mean_keys_of_spans_that_end_with_their_chunk() -> None:
    memory, text = remembering(Ltri(0.3, longest=8), TOKENS, 2, 1).memory, make_view(TOKENS, seed=3)
    for head, (firsts, vectors) in enumerate(zip(memory.recall("firsts"), memory.recall("vectors"), strict=True)):
        assert {0, PROMPT // 2} <= set(firsts.tolist())
        assert firsts.tolist() == sorted(set(firsts.tolist()))
        spans = list(pairwise([*firsts.tolist(), PROMPT]))
        assert max(b - a for a, b in spans) <= 8
        means = torch.stack([text.keys[head, a:b].mean(0) for a, b in spans])
        torch.testing.assert_close(vectors, means)
    assert [int(end) for end in memory.recall("end")] == [PROMPT] * 2


@pytest.mark.parametrize("stride", [1, 3])
def test_retrieval_attention_joins_the_keys_that_a_query_finds_together(stride: int) -> None:
    method = RetrievalAttention(0.3, sinks=2, recent=4, stride=stride, nearest=4, width=6)
    memory, text = remembering(method, TOKENS, 2, 1).memory, make_view(TOKENS, seed=3)
    for head, (edges, hubs) in enumerate(zip(memory.recall("edges"), memory.recall("hubs"), strict=True)):
        joined, often = [], [0] * PROMPT
        for query in text.queries[head].unbind(0):
            for place in range(0, PROMPT, stride):
                scores = (text.keys[head].double() @ query[place].double()).tolist()
                found = sorted(range(2, place + 1), key=scores.__getitem__)[-4:]
                if len(found) == 4:
                    joined.append([found[-1], *sorted(found)])
                    often[found[-1]] += 1
        assert sorted(edges.tolist()) == sorted(joined)
        assert hubs.tolist() == sorted(sorted(range(PROMPT), key=lambda p: (often[p], p))[-6:])


def test_act_qkv_shares_its_budget_by_the_entropies_of_the_step_before() -> None:
    method, heads = ActQKV(0.3, size=16, floor=0.25), range(2)
    view, entropies = remembering(method, TOKENS, 2, 1), torch.zeros(4, 2, dtype=torch.float64)
    for layer in range(4):
        text = make_view(TOKENS, seed=layer)
        for head in heads:
            for query in text.queries[head, :, PROMPT].double():
                weights = (text.keys[head, : PROMPT + 1 : 16].double() @ query * text.scale).softmax(0).tolist()
                entropies[layer, head] -= sum(one * math.log(one) for one in weights) / 2
    expected = 0.25 + 0.75 * 4 * entropies[3].sum() / entropies.sum()
    torch.testing.assert_close(share(view, method.floor).double(), expected)


def test_act_qkv_counts_layers_of_fewer_heads_too() -> None:
    """A layer of one head is one layer, its density that of its head."""
    view = make_view(TOKENS, 2, 1)
    densities = {(0, 0): 3.0, (1, 0): 1.0, (1, 1): 2.0, (3, 0): 0.5, (3, 1): 2.0}
    notes = {(*place, "density"): torch.tensor([TOKENS, 9.0, one]).double() for place, one in densities.items()}
    shown = changed(view, memory=Memory(notes, 3, (0, 1)))
    assert float(share(shown, 0.5)) == pytest.approx(0.5 + 0.5 * 1.25 * 3 / (3.0 + 1.5 + 1.25))
    assert float(share(shown, 0.5)) == pytest.approx(plain_share(shown, 0.5))


@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_layers_never_take_more_than_the_budget_together(seed: int, floor: float) -> None:
    random = torch.Generator().manual_seed(seed)
    notes = {
        (layer, head, "density"): torch.rand(3, generator=random).double() for layer in range(6) for head in (0, 1)
    }
    shares = [
        float(share(changed(replace(make_view(TOKENS, 2, 1), layer=layer), memory=Memory(notes, layer, (0, 1))), floor))
        for layer in range(6)
    ]
    assert sum(shares) / 6 == pytest.approx(1)
    assert min(shares) >= floor and (max(shares) > 1 or floor == 1)


@pytest.mark.parametrize("gone", [0, 20])
@pytest.mark.parametrize("since", [0, 50, 75, 80])
def test_a_choice_that_is_read_again_comes_with_the_tokens_since(since: int, gone: int) -> None:
    method, view = RecentRead(0.3, sinks=2, recent=4), thinned(make_view(TOKENS), gone)
    noted = [torch.arange(head, 70, 7) for head in range(2)]
    fast, slow = method.again(view, noted, since), method.plain_again(view, noted, since)
    assert [one.tolist() for one in fast.indices] == [one.tolist() for one in slow.indices]
