"""Routers: which of several experts or heads a token is sent to, and the loss that spreads tokens over them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headwise.layers.norms import wide
from headwise.layers.projections import linear


class Router(nn.Module):
    """How much each of `count` experts is asked of by a token; the `top` of them are."""

    def __init__(self, width: int, count: int, top: int) -> None:
        super().__init__()
        self.proj, self.top = linear(width, count), top

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, width]` -> [batch, tokens, experts], which sum to 1."""
        return wide(self.proj(x)).softmax(-1)


def chosen(shares: Tensor, top: int) -> Tensor:
    """`shares [..., experts]` of the `top` largest, 0 elsewhere."""
    best = shares.topk(top, dim=-1).indices
    return shares * torch.zeros_like(shares).scatter(-1, best, 1.0)


def imbalance(shares: Tensor, top: int) -> Tensor:
    """Experts times the sum over them of the mean share and the share of tokens that are sent there; `top` where
    tokens are spread evenly, as much as `top` times experts where all are sent to the same."""
    sent = (chosen(shares, top) > 0).to(shares.dtype).flatten(0, -2).mean(0)
    return shares.shape[-1] * (shares.flatten(0, -2).mean(0) * sent).sum()
