"""Multi-layers trainable pooling (Tang and Yang 2024, arXiv 2409.02727): one vector of a text from those of all layers
of a decoder, by learned queries that attend to layers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention

from headwise.errors import HeadwiseError


class LayerPooling(nn.Module):
    """Learned latents attend to the vectors of all layers, each with a learned embedding of its layer; a gated
    feed-forward layer follows, the mean over latents, and length 1, as in the official code.

    layers, width: of the vectors. latents: learned queries. heads: of the attention, which divide the width. The
    official code has 768 latents and 32 heads of 2048 channels, for layers 4096 wide.
    """

    def __init__(self, layers: int, width: int, latents: int = 16, heads: int = 8) -> None:
        super().__init__()
        if min(layers, width, latents, heads) < 1 or width % heads:
            raise HeadwiseError(
                f"{layers} layers of width {width}, {latents} latents and {heads} heads; give 1 or more of each, and "
                "heads that divide the width"
            )
        self.heads = heads
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layer = nn.Embedding(layers, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))  # of latents, layers, and what is fed forward
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.wide, self.narrow = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """`vectors [texts, layers, width]` to [texts, width], each of length 1."""
        if vectors.dim() != 3 or vectors.shape[1:] != self.layer.weight.shape:
            told = f"vectors of shape {list(vectors.shape)}"
            raise HeadwiseError(f"{told}; this pooling reads [texts, {', '.join(map(str, self.layer.weight.shape))}]")
        latents = self.latents.expand(len(vectors), -1, -1)
        read = self.norms[1](vectors + self.layer.weight)
        query = self._split(self.query(self.norms[0](latents)))
        key, value = map(self._split, self.key_value(read).chunk(2, dim=-1))
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        latents = latents + self.out(mixed)
        shown, gate = self.wide(self.norms[2](latents)).chunk(2, dim=-1)
        return normalize((latents + self.narrow(shown * gelu(gate))).mean(1), dim=-1)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def plain(pool: LayerPooling, vectors: torch.Tensor) -> torch.Tensor:
    """The same of one text `[layers, width]`, latent by latent and head by head, in the plainest way: [width]."""
    width = vectors.shape[1] // pool.heads
    read = pool.norms[1](vectors + pool.layer.weight)
    keys, values = pool.key_value(read).chunk(2, dim=-1)
    found = []
    for latent in pool.latents:
        query, parts = pool.query(pool.norms[0](latent)), []
        for first in range(0, vectors.shape[1], width):
            own = slice(first, first + width)
            weights = (keys[:, own] @ query[own] / width**0.5).softmax(0)
            parts.append(weights @ values[:, own])
        mixed = latent + pool.out(torch.cat(parts))
        shown, gate = pool.wide(pool.norms[2](mixed)).chunk(2)
        found.append(mixed + pool.narrow(shown * gelu(gate)))
    total = torch.stack(found).mean(0)
    return total / total.norm()
