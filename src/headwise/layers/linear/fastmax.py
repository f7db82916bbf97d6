"""Fastmax: a factorisable polynomial in the place of the softmax's exponential, on normed queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.mapped import Mapped, polynomial
from headwise.layers.norms import EPS


@layer_part("mix", "fastmax")
@dataclass(frozen=True)
class Fastmax(Mapped):
    """Weights are 1 + s, or 1 + s + s^2/2, of queries and keys of mean 0 and length 1, so that no weight is below 0.

    order: 1 or 2, of the polynomial. block: tokens that are computed at once.
    """

    order: Positive = 2
    card: ClassVar[LayerCard] = LayerCard(
        "Fastmax",
        "FAST: Factorizable Attention for Speeding up Transformers, 2402.07901, sections 2.2 and 2.3",
        "weights are a polynomial of normed products, so that moments of the keys stand for all keys",
        "w_ij = f(s_ij) / sum_j f(s_ij), f(s) = 1 + s [+ s^2 / 2], s_ij = q_i . k_j, q and k of mean 0 and length 1",
        systems=(220,),
        state="constant",
        deviations="of row 220 the causal layer: no dropout of moments; both moments are one memory of 1 + d + d^2 "
        "rows, where symmetry would need half",
    )

    def conflict(self) -> str:
        return "" if self.order <= 2 else f"order={self.order}: polynomials are of order 1 or 2"

    def features(self, x: Tensor, scale: float) -> Tensor:
        return polynomial(_normed(x), self.order)

    def kernel(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        a, b = q - q.mean(), k - k.mean()
        score = (a @ b) / ((a @ a + EPS) * (b @ b + EPS)).sqrt()
        return 1 + score + (score.square() / 2 if self.order == 2 else 0)


def _normed(x: Tensor) -> Tensor:
    """`x [..., dim]` of mean 0 and length 1."""
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()
