"""A gate for each head, given by the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Out
from headwise.layers.norms import wide
from headwise.layers.projections import linear, merged

OPEN = 1.1  # first bias of a gate, whose sigmoid is 0.75


@layer_part("out", "gated_heads")
@dataclass(frozen=True)
class GatedHeadsOut(Out):
    """What a head read is multiplied by a number between 0 and 1 that the token gives."""

    card: ClassVar[LayerCard] = LayerCard(
        "Gated attention",
        "Quantizable Transformers, 2306.12929, section 4.2",
        "a token turns heads off that have nothing to say to it",
        "y = W_o [sigmoid(w_h . x + b_h) o_h]",
        systems=(108,),
        deviations="gates read the whole token, where the paper's read the head's slice of it; of row 108 neither "
        "outliers nor quantisation are measured",
    )

    def build(self, dims: Dims, heads: int, head_dim: int) -> HeadGates:
        return HeadGates(dims, heads, head_dim)


class HeadGates(nn.Module):
    """The module of `gated_heads`."""

    def __init__(self, dims: Dims, heads: int, head_dim: int) -> None:
        super().__init__()
        self.gate = linear(dims.width, heads)
        self.open = nn.Parameter(self.gate.weight.new_full((heads,), OPEN))
        self.o = linear(heads * head_dim, dims.width)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """`read [batch, heads, tokens, head dim]`, `x [batch, tokens, width]` -> as `x`."""
        gate = (wide(self.gate(x)) + wide(self.open)).sigmoid().transpose(1, 2)
        return self.o(merged((read * gate[..., None]).to(read.dtype)))
