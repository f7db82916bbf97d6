"""Some heads are always on, and of the others each token turns a few on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import RecipeError
from headwise.knobs import NonNegative, Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Out
from headwise.layers.norms import wide
from headwise.layers.projections import linear, merged
from headwise.layers.routing import Router, chosen


@layer_part("out", "routed_heads")
@dataclass(frozen=True)
class RoutedHeads(Out):
    """The first heads are shared by all tokens; of the others a token uses the best by its router, and what it does not
    use counts nothing.

    shared: heads that are always on. top: of the others that a token uses.
    """

    shared: NonNegative = 1
    top: Positive = 2
    card: ClassVar[LayerCard] = LayerCard(
        "Mixture-of-head attention",
        "MoH, 2410.11842, section 3.2, and its code",
        "heads are experts, of which a token uses a few",
        "y = W_o [g_1 o_1, ..., g_h o_h]; shared g = 2 a_1 s softmax(W_s x), routed g = 2 a_2 k p_e / sum of the top "
        "p, p = softmax(W_r x), a = softmax(W_h x)",
        systems=(2,),
        deviations="weights are scaled as its code does, so that even shares are weights of 1, which its text does not "
        "say; the balance loss is the hook `balance`. All heads are computed, as in its code, and those that are off "
        "weigh nothing; of row 2 converting a pretrained model is not here",
    )

    def build(self, dims: Dims, heads: int, head_dim: int) -> Routed:
        routed = heads - self.shared
        if not self.top <= routed:
            raise RecipeError(
                f"routed_heads: {self.top} of {heads} heads of which {self.shared} are shared; give shared and top of "
                f"{heads} together at most"
            )
        return Routed(self, dims, heads, head_dim)


class Routed(nn.Module):
    """The module of `routed_heads`."""

    def __init__(self, part: RoutedHeads, dims: Dims, heads: int, head_dim: int) -> None:
        super().__init__()
        self.part = part
        self.router = Router(dims.width, heads - part.shared, part.top)
        self.shares = linear(dims.width, part.shared) if part.shared else None
        self.kinds = linear(dims.width, 2) if part.shared else None
        self.o = linear(heads * head_dim, dims.width)

    def gates(self, x: Tensor) -> Tensor:
        """What the heads' answers are multiplied by, [batch, tokens, heads]; 0 where one is off."""
        best = chosen(self.router(x), self.part.top)
        routed = self.part.top * best / best.sum(-1, keepdim=True)
        if self.shares is None or self.kinds is None:
            return routed
        first, other = (2 * wide(self.kinds(x)).softmax(-1)).split(1, dim=-1)
        shared = self.part.shared * wide(self.shares(x)).softmax(-1)
        return torch.cat((first * shared, other * routed), -1)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """`read [batch, heads, tokens, head dim]`, `x [batch, tokens, width]` -> as `x`."""
        gates = self.gates(x).transpose(1, 2)[..., None]
        return self.o(merged((read * gates).to(read.dtype)))
