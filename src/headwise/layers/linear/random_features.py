"""Linear attention with positive random features of the softmax kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import NonNegative, Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.mapped import Mapped


@layer_part("mix", "performer")
@dataclass(frozen=True)
class Performer(Mapped):
    """The softmax's exponential, estimated by random directions: the more of them the nearer.

    count: directions. seed: from which they are drawn; they are not trained. block: tokens that are computed at once.
    """

    count: Positive = 64
    seed: NonNegative = 0
    card: ClassVar[LayerCard] = LayerCard(
        "Performer's positive random features",
        "Rethinking Attention with Performers, 2009.14794, section 2.3 and lemma 1",
        "weights estimate exp(s) by products of positive features, so that one memory a head stands for all keys",
        "f(x) = exp(w_r . x - |x|^2 / 2) / sqrt(m), x = q / d^(1/4) or k / d^(1/4), w_r orthogonal by blocks",
        state="constant",
        deviations="no largest exponent is taken out, as a running sum cannot know it; directions are never redrawn",
    )

    def features(self, x: Tensor, scale: float) -> Tensor:
        x = x * scale**0.5
        directions = drawn(self.count, x.shape[-1], self.seed).to(x)
        return (x @ directions.T - x.square().sum(-1, keepdim=True) / 2).exp() * self.count**-0.5

    def kernel(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        directions = drawn(self.count, len(q), self.seed).to(q)
        both = (q + k) * scale**0.5
        lengths = (q.square().sum() + k.square().sum()) * scale / 2
        return torch.stack([(direction @ both - lengths).exp() for direction in directions]).mean()


@lru_cache(64)
def drawn(count: int, dim: int, seed: int) -> Tensor:
    """Directions [count, dim]: Gaussian, orthogonal within each run of `dim` of them."""
    chance = torch.Generator(device="cpu").manual_seed(seed)
    runs = -(-count // dim)
    gauss = torch.randn(2, runs, dim, dim, generator=chance, dtype=torch.float64, device="cpu")
    turns, lengths = torch.linalg.qr(gauss[0])[0], gauss[1].norm(dim=-1, keepdim=True)
    return (turns * lengths).flatten(0, 1)[:count]
