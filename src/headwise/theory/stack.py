"""The small transformer in both directions that experiments train."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Stack(nn.Module):
    """So many layers of attention over so many places, each before a feed-forward layer, and norms before both."""

    def __init__(self, tokens: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.places = nn.Parameter(0.5 * torch.randn(tokens, width))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.wide = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))

    def forward(self, x: Tensor, kept: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """States [b, tokens, width] of what is embedded, x of the same shape, and each layer's attention
        [b, heads, tokens, tokens]. kept: what the outputs of heads are multiplied by, [layers, heads]."""
        x, maps = x + self.places, []
        for layer, project in enumerate(self.qkv):
            q, k, v = (
                one.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for one in project(self.norms[2 * layer](x)).chunk(3, dim=-1)
            )
            maps.append((q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1))
            read = maps[-1] @ v
            if kept is not None:
                read = read * kept[layer][:, None, None]
            x = x + self.out[layer](read.transpose(1, 2).flatten(2))
            x = x + self.wide[layer](self.norms[2 * layer + 1](x))
        return x, maps
