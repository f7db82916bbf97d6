"""Heads of Neural Attention Search: what they are taught is what the attention shows, and they learn it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.attention.view import View
from headwise.forms import Scoring
from headwise.methods.evict.nats.labels import Late, Paid, following, labels
from headwise.methods.evict.nats.measure import fitted
from headwise.methods.roles import GLOBAL, LOCAL, NEAR


def attended(paid: torch.Tensor) -> View:
    """One head whose queries pay this attention [n, n], rows of which sum to 1."""
    n = len(paid)
    queries = paid.clamp_min(1e-9).log() * n**0.5
    granted = {"keys": torch.eye(n)[None], "queries": queries[None, None], "query_positions": torch.arange(n)}
    return View(0, (0,), "prefill", n, Scoring(n**-0.5), 0, torch.arange(n)[None], {**granted, "rope": None})


def pieces(view: View, size: int) -> list[View]:
    """What is seen of a document that is read in pieces."""
    parts = []
    for start in range(0, view.seen, size):
        stop = min(start + size, view.seen)
        granted = dict(view.granted, keys=view.keys[:, :stop], queries=view.queries[:, :, start:stop])
        granted["query_positions"] = view.query_positions[start:stop]
        parts.append(replace(view, seen=stop, positions=view.positions[:, :stop], granted=granted))
    return parts


def types_of(paid: torch.Tensor, size: int) -> list[int]:
    """The tokens' types, found in two readings in pieces of a size."""
    parts, sums = pieces(attended(paid), size), Paid(6, tokens=len(paid))
    for part in parts:
        sums.look(part)
    keeps = sums.kept(0, 0.9)
    late = Late({0: following(keeps)}, tokens=len(paid))
    for part in parts:
        late.look(part)
    assert late.keys[0].shape == (1, len(paid), len(paid))
    return labels(keeps, late.late[0], sums.total[0], 0.9)[0].tolist()


@pytest.mark.parametrize("size", [40, 17])
def test_labels_say_until_when_a_token_is_attended_to(size: int) -> None:
    """Token 2 is attended to by all; tokens 10 to 19 by the next three; the others only by themselves."""
    paid = torch.eye(40)
    paid[3:, 2] = 1.0
    for j in range(10, 20):
        paid[j + 1 : j + 4, j] = 1.0
    paid = paid.tril() / paid.tril().sum(1, keepdim=True)
    types = types_of(paid, size)
    assert types[2] == GLOBAL and GLOBAL not in types[:2] + types[3:]
    assert types[0] == types[1] == LOCAL, "nothing is paid to them after the global token"
    assert types[3] == types[25] == LOCAL, "no global token comes"
    paid[21:, 20] = paid[21:, 2]  # another one, so that those before it would be lost with it
    types = types_of(paid / paid.sum(1, keepdim=True), size)
    assert types[2] == types[20] == GLOBAL
    assert types[18] == types[19] == NEAR and types[12] == LOCAL


def test_a_head_learns_types_that_are_linear_in_the_key() -> None:
    random = torch.Generator().manual_seed(0)
    keys, truth = torch.randn(600, 16, generator=random) * 5 + 2, torch.randn(17, 3, generator=random)
    types = (keys @ truth[:-1] + truth[-1]).argmax(-1)
    head = fitted(keys[:400], types[:400])
    said = (keys @ head[:-1] + head[-1]).argmax(-1)
    assert (said[400:] == types[400:]).double().mean() > 0.93
