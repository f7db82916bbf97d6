"""A prior over distances: a generalised Gaussian that each head learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, Streams, StreamShape
from headwise.layers.pairs import Block, Position, Row
from headwise.layers.position.alibi import alibi_slopes

LEAST = 1e-5  # added to a distance, whose power has no derivative at 0


@layer_part("position", "bam")
@dataclass(frozen=True)
class Bam(Position):
    """To a score is added the logarithm of a generalised Gaussian over distance, of a head's own scale and shape."""

    adds: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Bayesian attention mechanism",
        "BAM, 2505.22842, section 4; with `ssmax` as its score",
        "far keys are asked less, by a slope and a shape that each head learns",
        "b_ij = -exp(a_h) |i - j|^theta_h",
        systems=(184,),
        equals=(
            Limit("a shape of 1: ALiBi", "alibi", lambda s: _shaped(s, 1.0)),
            Limit("a shape of 0: no positions", "nope", lambda s: _shaped(s, 0.0)),
        ),
        deviations="as its code, which takes the power before the scale, where its text takes it after; the Gaussian's "
        "middle is 0, as it is trained there; 1e-5 is added to a distance",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {
            "bam_scale": torch.tensor(alibi_slopes(shape.heads)).log(),
            "bam_shape": torch.ones(shape.heads),
        }

    def bias(self, block: Block) -> Tensor:
        far = block.distance.clamp_min(0) + LEAST
        return -block.of_heads("bam_scale").exp() * far ** block.of_heads("bam_shape")

    def alone(self, row: Row) -> Tensor:
        far = torch.tensor([distance + LEAST for distance in row.distances], dtype=row.k.dtype)
        return -(row.learned["bam_shape"] * far.log() + row.learned["bam_scale"]).exp()


def _shaped(streams: Streams, shape: float) -> Streams:
    """With ALiBi's slopes and one shape for all heads."""
    heads = streams.q.shape[1]
    slopes, shapes = torch.tensor(alibi_slopes(heads)).log(), torch.full((heads,), shape)
    return replace(streams, learned={**streams.learned, "bam_scale": slopes, "bam_shape": shapes})
