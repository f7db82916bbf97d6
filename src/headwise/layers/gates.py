"""What running layers make of their input beside queries, keys and values: decays, and how much is written."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.layers.norms import wide
from headwise.layers.projections import linear, split

RATES, STEPS = (1.0, 16.0), (0.001, 0.1)  # between which rates and first steps are drawn


class Gates(nn.Module):
    """The gates of some modules, each x -> [batch, heads, tokens, ...], by name."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """`x [batch, tokens, width]` -> the gates."""
        return {name: module(x) for name, module in self.by_name.items()}


class Beta(nn.Module):
    """How much a token writes, between 0 and 1: sigmoid(W x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.proj = linear(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, heads, tokens]."""
        return wide(self.proj(x)).sigmoid().transpose(1, 2)


class Steps(nn.Module):
    """Steps softplus(W x + b), positive, [batch, heads, tokens, channels]; they begin between 0.001 and 0.1."""

    def __init__(self, proj: nn.Module, heads: int, channels: int) -> None:
        super().__init__()
        self.proj, self.heads = proj, heads
        low, high = map(math.log, STEPS)
        first = (torch.rand(heads * channels) * (high - low) + low).exp()
        self.bias = nn.Parameter(first + (-torch.expm1(-first)).log())  # whose softplus is `first`

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, width]` -> [batch, heads, tokens, channels]."""
        return split(F.softplus(wide(self.proj(x)) + wide(self.bias)), self.heads)


class Decay(nn.Module):
    """Logarithms of decays, -exp(a) times steps, [batch, heads, tokens, channels]: Mamba's selective decay."""

    def __init__(self, proj: nn.Module, heads: int, channels: int) -> None:
        super().__init__()
        self.steps = Steps(proj, heads, channels)
        self.rate = nn.Parameter(torch.empty(heads).uniform_(*RATES).log())

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, width]` -> [batch, heads, tokens, channels]."""
        return -wide(self.rate).exp()[:, None, None] * self.steps(x)


class FixedDecay(nn.Module):
    """Logarithms of decays that no input changes, one a head: [batch, heads, tokens, 1]."""

    rates: Tensor

    def __init__(self, rates: Tensor) -> None:
        super().__init__()
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, width]` -> [batch, heads, tokens, 1]."""
        return self.rates[:, None, None].expand(len(x), -1, x.shape[1], -1)
