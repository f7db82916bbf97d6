"""Rotary positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from headwise.errors import RecipeError
from headwise.knobs import Factor
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Streams
from headwise.layers.pairs import Position
from headwise.shapes import Rope as Rotation


@layer_part("position", "rope")
@dataclass(frozen=True)
class Rope(Position):
    """Queries and keys are turned by their place, so that their product tells how far apart they are.

    base: of the angles of the channel pairs. interleaved: neighbours are pairs, and not the halves of a head.
    """

    base: Factor = 10000.0
    interleaved: bool = False
    turns: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Rotary position embedding",
        "RoFormer, 2104.09864, section 3.2",
        "scores depend on the distance of query and key",
        "s_ij = q_i^T R(j - i) k_j, R turns channel pair c by base^(-2c/d) a token",
    )

    def turn(self, streams: Streams, positions: Tensor) -> Streams:
        q, k = (self._turned(one, streams.turned, positions) for one in (streams.q, streams.k))
        return replace(streams, q=q, k=k, v=k[..., : streams.shared] if streams.shared else streams.v)

    def rotation(self, channels: int) -> Rotation:
        if channels % 2:
            raise RecipeError(f"rope: {channels} channels cannot be turned in pairs; give heads of an even width")
        pairs = torch.arange(0, channels, 2, dtype=torch.float32)
        return Rotation(self.base ** (-pairs / channels), self.interleaved)

    def _turned(self, x: Tensor, channels: int | None, positions: Tensor) -> Tensor:
        channels = x.shape[-1] if channels is None else channels
        still, turned = x.split((x.shape[-1] - channels, channels), -1)
        return torch.cat((still, self.rotation(channels).rotate(turned, positions[:, None])), -1)
