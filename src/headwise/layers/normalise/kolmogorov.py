"""A learned operator in the place of the softmax: waves of the scores, summed into a few channels and out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.norms import wide
from headwise.layers.pairs import Block, Normalise, Row


@layer_part("normalise", "kolmogorov")
@dataclass(frozen=True)
class Kolmogorov(Normalise):
    """The scores of a query pass learned Fourier series, one for each distance and hidden channel, are summed, and are
    spread over the keys again. Keys that are farther than the span weigh nothing.

    span: tokens, the query's own among them. hidden: channels between. waves: of a series.
    """

    span: Positive = 64
    hidden: Positive = 4
    waves: Positive = 2
    card: ClassVar[LayerCard] = LayerCard(
        "Kolmogorov-Arnold attention",
        "Kolmogorov-Arnold Attention, 2503.10632, section 3",
        "how scores become weights is learned, and weights may be below 0",
        "w_i = W phi(s_i), phi_r(s) = sum over j and g of a_rjg cos(g s_j) + b_rjg sin(g s_j)",
        systems=(67,),
        deviations="written from the row's own words, not beside its code. An image has as many keys in every row, a "
        "text has not: places are distances to the query, up to a span; the blockwise form, an operator a head, and no "
        "projection onto a simplex. First values look at all keys of the span about alike",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        size = (shape.heads, self.span, self.hidden, 2 * self.waves)
        first = torch.randn(size) * (self.span * self.waves) ** -0.5
        back = torch.randn(shape.heads, self.hidden, self.span) * self.hidden**-0.5
        return {"kolmogorov_in": first, "kolmogorov_out": back}

    def _series(self, scores: Tensor) -> Tensor:
        """Cosines and sines of `scores [...]`, [..., 2 waves]."""
        turned = scores[..., None] * torch.arange(1, self.waves + 1, device=scores.device)
        return torch.cat((turned.cos(), turned.sin()), dim=-1)

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        near = block.seen & (block.distance < self.span)
        place = block.distance.clamp(0, self.span - 1)
        first, back = (wide(block.learned[name]) for name in ("kolmogorov_in", "kolmogorov_out"))
        waves = self._series(wide(scores)) * near[..., None]
        hidden = torch.einsum("bhqkg,hqkrg->bhqr", waves, first[:, place])
        return torch.einsum("bhqr,hrqk->bhqk", hidden, back[:, :, place]) * near

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        first, back = row.learned["kolmogorov_in"], row.learned["kolmogorov_out"]
        near = [(at, far) for at, far in enumerate(row.distances) if far < self.span]
        hidden = torch.stack([first[far] @ self._series(scores[at]) for at, far in near]).sum(0)
        weights = torch.zeros_like(scores)
        for at, far in near:
            weights[at] = hidden @ back[:, far]
        return weights
