"""A learned number for each head and range of distances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from headwise.knobs import Ge, Le, Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.pairs import Block, Position, Row


@layer_part("position", "t5_bias")
@dataclass(frozen=True)
class T5Bias(Position):
    """To a score is added a number that the head learns for its distance: one for each short one, then for ranges that
    grow, the last of which has no end.

    buckets: numbers of a head. farthest: distance from which all are alike.
    """

    buckets: Annotated[int, Ge(4), Le(4096)] = 32
    farthest: Positive = 128
    adds: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Relative position bias",
        "T5, 1910.10683, section 2.1",
        "far keys are asked as each head learns",
        "b_ij = table_h[bucket(i - j)]",
        deviations="every layer has a table of its own, where T5's layers share one",
    )

    def conflict(self) -> str | None:
        if self.farthest <= self.buckets // 2:
            return f"farthest={self.farthest} lies within the {self.buckets // 2} single distances; give a larger one"
        return None

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {"t5_table": torch.zeros(shape.heads, self.buckets)}

    def bias(self, block: Block) -> Tensor:
        far, single = block.distance.clamp_min(0), self.buckets // 2
        grown = (far.clamp_min(1) / single).log() / math.log(self.farthest / single) * (self.buckets - single)
        bucket = torch.where(far < single, far, (single + grown.long()).clamp(max=self.buckets - 1))
        return block.learned["t5_table"][:, bucket]

    def alone(self, row: Row) -> Tensor:
        return row.learned["t5_table"][[self._bucket(far) for far in row.distances]]

    def _bucket(self, far: int) -> int:
        """The range that a distance lies in."""
        single = self.buckets // 2
        if far < single:
            return far
        ratio = math.log(far / single) / math.log(self.farthest / single)
        return min(single + int(ratio * (self.buckets - single)), self.buckets - 1)
