"""Softplus in the place of the exponential, and weights that are sharpened after it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from headwise.knobs import Factor, Weight
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.pairs import Block, Normalise, Row

LEAST = 1e-9  # a sum of weights below it is none


@layer_part("normalise", "softplus")
@dataclass(frozen=True)
class Softplus(Normalise):
    """Softplus of scores that grow with the logarithm of how many keys there are, over their sum; then, n times that
    less an offset to a power, over its sum again.

    power: of the second step, which may be higher when texts are longer; 1 with no offset leaves it out. offset: what
    is taken from n times a weight, 1 being a uniform one.
    """

    power: Factor = 3.0
    offset: Weight = 0.0
    card: ClassVar[LayerCard] = LayerCard(
        "Softplus attention with re-weighting",
        "LSSAR, 2501.13428, sections 3.1 and 3.2",
        "no exponential; strong weights are made stronger, at any length",
        "a_ij = softplus(s_ij log d log n_i) / sum_j, w_ij = relu(n_i a_ij - offset)^p / sum_j",
        systems=(79,),
        deviations="written from the row of the list, as its code and full text were not to be had: the defaults "
        "of offset and power are ours; the scale is no longer 0 for a query of one key, which has the scale of two; "
        "where no weight is above the offset, none is left",
    )

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        grown = math.log(block.q.shape[-1]) * block.count.clamp_min(2).log()
        first = F.softplus(scores * grown) * block.seen
        first = first / first.sum(-1, keepdim=True).clamp_min(LEAST)
        sharp = (block.count * first - self.offset).clamp_min(0).pow(self.power)
        return sharp / sharp.sum(-1, keepdim=True).clamp_min(LEAST)

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        keys = len(scores)
        first = (1 + (scores * math.log(len(row.q)) * math.log(max(keys, 2))).exp()).log()
        risen = (keys * first / first.sum() - self.offset).relu() ** self.power
        return risen / risen.sum().clamp(min=LEAST)
