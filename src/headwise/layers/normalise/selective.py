"""Each token sets how sharply its query looks, and how much its value counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.base import Dims, Streams, StreamShape
from headwise.layers.normalise.softmax import Softmax
from headwise.layers.norms import wide
from headwise.layers.pairs import Block, Normalise, Row

NEVER = -1e4  # whose sigmoid is 0


def _still(streams: Streams) -> Streams:
    """No number differs from 1."""
    names = ("selective_query", "selective_value")
    ones = {name: torch.ones_like(streams.gates[name]) for name in names}
    return streams.with_gates(**ones).with_learned(
        selective_place=torch.full_like(streams.learned["selective_place"], NEVER)
    )


@layer_part("normalise", "selective")
@dataclass(frozen=True)
class Selective(Normalise):
    """A softmax of scores times an inverse temperature, which a token's own channels and its place give; and values
    times a number that their token gives.

    hidden: channels of the two small networks, which all heads share.
    """

    hidden: Positive = 4
    weighs: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Selective self-attention",
        "SSA, 2411.12892, section 3",
        "a token sets how sharply it looks and how much it counts",
        "w_i = softmax(t_i s_i), t_i = tanh f(x_i) + 1 + sigmoid(a_h) log i; v_j <- (tanh g(x_j) + 1) v_j",
        systems=(16,),
        equals=(Limit("f = g = 0 and a sigmoid of 0: softmax", "softmax", _still),),
        deviations="the numbers of values have no logarithm of their place; i counts the keys that a query sees",
    )

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        return {"selective_place": torch.full((shape.heads,), -2.0)}

    def gates(self, dims: Dims, shape: StreamShape) -> dict[str, nn.Module]:
        names = ("selective_query", "selective_value")
        return {name: Small(dims.width, self.hidden, shape.heads) for name in names}

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        place = block.of_heads("selective_place").sigmoid() * block.count.log()
        return Softmax().weights(scores * (block.gates["selective_query"][..., None] + place), block)

    def values(self, v: Tensor, gates: Mapping[str, Tensor]) -> Tensor:
        return v * _of_values(gates["selective_value"], v)[..., None].to(v.dtype)

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        place = row.learned["selective_place"].sigmoid() * torch.tensor(len(scores)).log()
        return (scores * (row.gates["selective_query"] + place)).softmax(0)


def _of_values(gate: Tensor, v: Tensor) -> Tensor:
    """The gate of every head of values, whose neighbours share it: all heads have the same."""
    return gate[:, : v.shape[1]] if v.dim() == 4 else gate


class Small(nn.Module):
    """tanh(f(x)) + 1 with a network of one hidden layer, the same for all heads; 1 before training."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inside, self.outside = nn.Linear(width, hidden), nn.Linear(hidden, 1)
        nn.init.zeros_(self.outside.weight)
        nn.init.zeros_(self.outside.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, width]` -> [batch, heads, tokens]."""
        found = wide(self.outside(nn.functional.gelu(self.inside(x)))).tanh() + 1
        return found.transpose(1, 2).expand(-1, self.heads, -1)
