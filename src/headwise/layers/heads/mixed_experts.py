"""Groups of heads are attention experts, all of which every token uses, as much as its router says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from headwise.errors import RecipeError
from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Out
from headwise.layers.projections import linear, merged
from headwise.layers.routing import Router


@layer_part("out", "mixed_experts")
@dataclass(frozen=True)
class MixedExperts(Out):
    """Heads are dealt to experts in turn, so that with `gqa(n)` before it an expert has `n` heads, of whose keys and
    values all experts read the same.

    count: experts, of which the layer's heads are a multiple.
    """

    count: Positive = 2
    card: ClassVar[LayerCard] = LayerCard(
        "Soft mixture of attention experts",
        "BAM! Just Like That, 2408.08274, section 3.2",
        "every token asks several attentions at once, and mixes what they say",
        "y = sum over experts e of p_e W_o,e [o_e,1, ..., o_e,h], p = softmax(W_r x)",
        systems=(9,),
        deviations="of row 9 the soft mixture, with keys and values shared (`gqa` before it) or own (`heads`); making "
        "one of several trained copies of a model, and the parallel block, are not here",
    )

    def build(self, dims: Dims, heads: int, head_dim: int) -> Mixed:
        if heads % self.count:
            raise RecipeError(
                f"mixed_experts: {heads} heads are no multiple of {self.count} experts; give count a number that "
                f"divides {heads}"
            )
        return Mixed(self.count, dims, heads, head_dim)


class Mixed(nn.Module):
    """The module of `mixed_experts`."""

    def __init__(self, count: int, dims: Dims, heads: int, head_dim: int) -> None:
        super().__init__()
        self.times = heads // count
        self.router = Router(dims.width, count, top=count)
        self.o = linear(heads * head_dim, dims.width)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        """`read [batch, heads, tokens, head dim]`, `x [batch, tokens, width]` -> as `x`."""
        shares = self.router(x).transpose(1, 2).repeat(1, self.times, 1)
        return self.o(merged((read * shares[..., None]).to(read.dtype)))
