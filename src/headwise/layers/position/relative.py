"""Transformer-XL's relative positions: sines of the distance, asked by the query and by two learned vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import Factor
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, StreamShape
from headwise.layers.pairs import Block, Position, Row


@layer_part("position", "relative")
@dataclass(frozen=True)
class Relative(Position):
    """A query also asks of a key's distance, and a learned vector a head asks of every key, another of every distance.

    base: of the waves' lengths.
    """

    base: Factor = 10000.0
    adds: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Relative positions of Transformer-XL",
        "Transformer-XL, 1901.02860, section 3.3; RCMHA, 2308.03429, has it after `short_conv(act='none')`",
        "a score also depends on the distance, by content and by head",
        "s_ij = ((q_i + u) . k_j + (q_i + v) . W r_(i-j)) / sqrt(d)",
        systems=(306,),
        equals=(
            Limit(
                "u, v and W are 0: no positions",
                "nope",
                lambda s: s.with_learned(**{name: torch.zeros_like(one) for name, one in s.learned.items()}),
            ),
        ),
        deviations="the key widths of waves are a head's, not the model's; W is a head's own; of row 306 no language "
        "model is trained",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        heads, dim = shape.heads, shape.key_dim
        return {
            "relative_u": torch.zeros(heads, dim),
            "relative_v": torch.zeros(heads, dim),
            "relative_w": torch.randn(heads, dim, dim) * dim**-0.5,
        }

    def bias(self, block: Block) -> Tensor:
        u, v, w = (block.learned[f"relative_{name}"].to(block.q.dtype) for name in "uvw")
        keys = block.k.shape[2]
        waves = self._waves(torch.arange(keys, device=block.q.device), block.q) @ w  # [heads, distances, dim]
        by_distance = (block.q + v[:, None]) @ waves.transpose(-1, -2)
        placed = block.distance.clamp_min(0).expand(*by_distance.shape[:2], -1, -1)
        of_keys = (u[:, None] * block.k).sum(-1)[:, :, None]
        return (by_distance.gather(-1, placed) + of_keys) * block.scale

    def alone(self, row: Row) -> Tensor:
        u, v, w = (row.learned[f"relative_{name}"] for name in "uvw")
        found = []
        for k, far in zip(row.k, row.distances, strict=True):
            wave = self._waves(torch.tensor([far]), row.q)[0]
            found.append(u @ k + (row.q + v) @ (wave @ w))
        return torch.stack(found) * row.scale

    def _waves(self, distance: Tensor, like: Tensor) -> Tensor:
        """Sines, then cosines, of distances [n]: [n, dim], of the width and type of `like`."""
        dim = like.shape[-1]
        turns = self.base ** (-torch.arange(0, dim, 2, device=like.device, dtype=like.dtype) / dim)
        angles = distance[:, None].to(like.dtype) * turns
        return torch.cat((angles.sin(), angles.cos()), -1)[:, :dim]
