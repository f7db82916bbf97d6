"""Attention as a recurrent network: the softmax of one learned query a head, carried as a running average."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.averaged import Averaged, averages
from headwise.layers.base import Lane, Streams, StreamShape, heads_of, repeated
from headwise.layers.norms import wide


def _one_query(streams: Streams) -> Streams:
    return replace(streams, q=streams.q[:1, :, :1].expand_as(streams.q))


@layer_part("mix", "aaren")
@dataclass(frozen=True)
class Aaren(Averaged):
    """A token counts by the product of its key with the query beside it, which `learned_query` makes the same for all.

    block: tokens that are computed at once.
    """

    usual: ClassVar[str] = "learned_query"
    card: ClassVar[LayerCard] = LayerCard(
        "Aaren",
        "Attention as an RNN, 2405.13956, sections 3.2 and 3.3",
        "the average that one learned query makes of all values so far, in value dim + 1 numbers a head",
        "o_t = sum_(j <= t) exp(q . k_j / sqrt(d)) v_j / sum_(j <= t) exp(q . k_j / sqrt(d)), q learned",
        systems=(255,),
        state="constant",
        equals=(Limit("one query for all tokens: softmax attention", "softmax", _one_query),),
        deviations="the paper's largest score and sum are one number, their logarithm; blocks in the place of its "
        "prefix scan; of row 255 no time series",
    )

    def rows(self, shape: StreamShape) -> int:
        return 1

    def logits(self, streams: Streams) -> Tensor:
        heads = heads_of(streams)
        q, k = (repeated(one, heads) for one in (streams.q, streams.k))
        return (wide(q) * wide(k)).sum(-1, keepdim=True) * streams.scale

    def asks(self, streams: Streams) -> Tensor:
        return torch.ones_like(streams.v[..., :1])

    def alone(self, lane: Lane) -> Tensor:
        return averages((lane.q * lane.k).sum(-1, keepdim=True) * lane.scale, lane.v)[:, 0]
