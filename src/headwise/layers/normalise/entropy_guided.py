"""A learned temperature a head, and what its loss adds where weights are spread too evenly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.normalise.softmax import Softmax
from headwise.layers.pairs import Block, Normalise, Row

LEAST = 1e-30  # of a weight whose logarithm is taken: those of hidden keys are 0


@layer_part("normalise", "entropy_guided")
@dataclass(frozen=True)
class EntropyGuided(Normalise):
    """A softmax with a learned temperature a head. `EntropyPenalty` is what its paper adds to the loss."""

    card: ClassVar[LayerCard] = LayerCard(
        "Entropy-guided attention",
        "Entropy-Guided Attention for Private LLMs, 2501.03489, section 4",
        "a head learns how sharply it looks, and is pulled to an entropy of its own",
        "w_i = softmax(s_i / t_h); loss + 1e-5 mean (H - theta_h log n)^2 where |H - theta_h log n| > margin log n",
        systems=(110,),
        equals=(
            Limit(
                "temperatures of 1: softmax",
                "softmax",
                lambda s: s.with_learned(guided_temperature=torch.ones_like(s.learned["guided_temperature"])),
            ),
        ),
        deviations="n is how many keys a query sees; of row 110 the share of overloaded heads is not measured",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {"guided_temperature": torch.ones(shape.heads)}

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        return Softmax().weights(scores / block.of_heads("guided_temperature"), block)

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        tempered = (scores / row.learned["guided_temperature"]).exp()
        return tempered / tempered.sum()


class EntropyPenalty(nn.Module):
    """What one layer adds to the loss; its thresholds are trained with the model, and are no part of the layer.

    margin: share of the largest entropy by which a row may lie from its head's threshold at no cost. strength: of the
    penalty beside the loss.
    """

    def __init__(self, heads: int, margin: float = 0.2, strength: float = 1e-5) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((heads,), 0.5))
        self.margin, self.strength = margin, strength

    def forward(self, weights: Tensor) -> Tensor:
        """Of weights [batch, heads, queries, keys] of whole texts (`Attend.weights`), each row's squared distance in
        nats from its head's share of the largest entropy, 0 within the margin; their mean, times the strength."""
        count = torch.arange(1, weights.shape[2] + 1, device=weights.device)
        most = count.to(weights.dtype).log()
        entropy = -(weights * weights.clamp_min(LEAST).log()).sum(-1)
        apart = entropy - self.share[:, None] * most
        return self.strength * (apart.square() * (apart.abs() > self.margin * most)).mean()
