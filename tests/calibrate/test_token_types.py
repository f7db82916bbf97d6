"""Heads of Neural Attention Search: what they are taught is what the attention shows, and they learn it."""

from __future__ import annotations

import torch

from headwise.attention.view import View
from headwise.calibrate.token_types import fitted, label
from headwise.methods.roles import GLOBAL, LOCAL, NEAR


def attended(paid: torch.Tensor) -> View:
    """One head whose queries pay this attention [n, n], rows of which sum to 1."""
    n = len(paid)
    queries = paid.clamp_min(1e-9).log() * n**0.5
    granted = {"keys": torch.eye(n)[None], "queries": queries[None, None], "query_positions": torch.arange(n)}
    return View(0, (0,), "prefill", n, n**-0.5, 0, torch.arange(n)[None], granted)


def test_labels_say_until_when_a_token_is_attended_to() -> None:
    """Token 2 is attended to by all; tokens 10 to 19 by the next three; the others only by themselves."""
    paid = torch.eye(40)
    paid[3:, 2] = 1.0
    for j in range(10, 20):
        paid[j + 1 : j + 4, j] = 1.0
    paid = paid.tril() / paid.tril().sum(1, keepdim=True)
    types = label(attended(paid), window=6, share=0.9)[0].tolist()
    assert types[2] == GLOBAL and GLOBAL not in types[:2] + types[3:]
    assert types[0] == types[1] == LOCAL, "nothing is paid to them after the global token"
    assert types[3] == types[25] == LOCAL, "no global token comes"
    paid[21:, 20] = paid[21:, 2]  # another one, so that those before it would be lost with it
    types = label(attended(paid / paid.sum(1, keepdim=True)), window=6, share=0.9)[0].tolist()
    assert types[2] == types[20] == GLOBAL
    assert types[18] == types[19] == NEAR and types[12] == LOCAL


def test_a_head_learns_types_that_are_linear_in_the_key() -> None:
    random = torch.Generator().manual_seed(0)
    keys, truth = torch.randn(600, 16, generator=random) * 5 + 2, torch.randn(17, 3, generator=random)
    types = (keys @ truth[:-1] + truth[-1]).argmax(-1)
    head = fitted(keys[:400], types[:400])
    said = (keys @ head[:-1] + head[-1]).argmax(-1)
    assert (said[400:] == types[400:]).double().mean() > 0.93
