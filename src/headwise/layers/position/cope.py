"""Positions that count what matters: gates of query and key, summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.pairs import Block, Position, Row


@layer_part("position", "cope")
@dataclass(frozen=True)
class Cope(Position):
    """How far a key is, is how many keys from it to the query the query's gate counts; a fractional number, between
    whose neighbours the learned positions are interpolated.

    most: positions, at the last of which all that are farther lie.
    """

    most: Positive = 64
    adds: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Contextual position encoding",
        "CoPE, 2405.18719, section 4 and appendix B",
        "distance is counted in what the query counts, not in tokens",
        "p_ij = sum_(l=j..i) sigmoid(s_il), b_ij = q_i . e[p_ij]",
        systems=(192,),
        deviations="gates are of the scaled products, as in appendix B; each head learns positions of its own",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {"cope_table": torch.zeros(shape.heads, self.most, shape.key_dim)}

    def bias(self, block: Block) -> Tensor:
        gates = block.products.sigmoid() * block.seen
        place = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=self.most - 1)
        asked = block.q @ block.learned["cope_table"].to(block.q.dtype).transpose(-1, -2)
        low = place.floor()
        share = place - low
        below, above = (asked.gather(-1, one.long()) for one in (low, place.ceil()))
        return (1 - share) * below + share * above

    def alone(self, row: Row) -> Tensor:
        found, counted, table = [], row.q.new_zeros(()), row.learned["cope_table"]
        for k in row.k.flip(0):
            counted = counted + 1 / (1 + (-(row.q * k).sum() * row.scale).exp())
            place = counted.clamp(max=self.most - 1)
            low = int(place)
            high = min(low + 1, self.most - 1)
            found.append(row.q @ (table[low] + (place - low) * (table[high] - table[low])))
        return torch.stack(found[::-1])
