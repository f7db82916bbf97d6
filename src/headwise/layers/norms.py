"""Norms that layers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-6


class RmsNorm(nn.Module):
    """`x / sqrt(mean(x^2) + 1e-6)` over the last dimension, in float32, times a weight for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., width]` -> the same shape and type."""
        return self.weight * rms(wide(x)).to(x.dtype)


def rms(x: Tensor) -> Tensor:
    """`x` with a mean square of 1 over its last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def unit(x: Tensor) -> Tensor:
    """`x` of length 1 over its last dimension, in float32 or wider."""
    x = wide(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in its own type where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
