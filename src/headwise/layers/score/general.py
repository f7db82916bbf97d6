"""A learned matrix between query and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, Streams, StreamShape
from headwise.layers.pairs import Block, Row, Score


def _unturned(streams: Streams) -> Streams:
    own = streams.learned["general_w"]
    return streams.with_learned(general_w=torch.eye(own.shape[-1]).expand_as(own))


@layer_part("score", "general")
@dataclass(frozen=True)
class General(Score):
    """A query is turned by a matrix of its head before it meets keys; positions that turn come before it."""

    card: ClassVar[LayerCard] = LayerCard(
        "Luong's general score",
        "Effective Approaches to Attention-based Neural Machine Translation, 1508.04025, section 3.1",
        "a learned matrix stands between query and key",
        "s_ij = q_i . W_h k_j / sqrt(d)",
        systems=(214,),
        equals=(Limit("W = 1: plain attention", "dot", _unturned),),
        deviations="between tokens of one text, scaled; `dot` and `additive` are the other two scores of the row, "
        "whose local attention and input feeding are not here",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {"general_w": torch.eye(shape.key_dim).repeat(shape.heads, 1, 1)}

    def scores(self, block: Block) -> Tensor:
        turned = block.q @ block.learned["general_w"].to(block.q.dtype)
        return turned @ block.k.transpose(-1, -2) * block.scale

    def alone(self, k: Tensor, row: Row) -> Tensor:
        return row.q @ (row.learned["general_w"] @ k) * row.scale
