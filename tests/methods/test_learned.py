"""What selections note of a prompt in two chunks, by brute force."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from headwise.methods.select.ltri import Ltri
from headwise.methods.select.retrieval_attention import RetrievalAttention
from tests.methods.views import make_view, remembering

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
