"""The projection of recurrent layers: queries, keys and values each pass a short causal convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.errors import RecipeError
from headwise.knobs import Ge, Le, NonNegative
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import NOWHERE, Dims, Project, State, Streams, StreamShape
from headwise.layers.projections import Linears


@layer_part("project", "short_conv")
@dataclass(frozen=True)
class ShortConv(Project):
    """Each channel of queries, keys and values is a sum over its last few tokens, through SiLU.

    kernel: tokens of the sum. key_heads: heads of queries and keys, which divide those of values; 0 is as many.
    key_dim: their channels; 0 is the width of a head. bias: whether a number is added for each channel.
    act: "none" leaves SiLU out, as RCMHA (2308.03429) has it.
    """

    kernel: Annotated[int, Ge(2), Le(16)] = 4
    key_heads: NonNegative = 0
    key_dim: NonNegative = 0
    bias: bool = False
    act: Literal["silu", "none"] = "silu"
    card: ClassVar[LayerCard] = LayerCard(
        "Short causal convolutions",
        "Hungry Hungry Hippos, 2212.14052, section 3.1; as Mamba-2 and Kimi Linear have them",
        "a token's queries, keys and values also hold its last neighbours'",
        "y_t = silu(sum_r w_r x_(t-r) + b) for each channel of W_q x, W_k x and W_v x",
        state="constant",
        deviations="plain torch, a product and a sum for each token of the kernel",
    )

    def shape(self, dims: Dims) -> StreamShape:
        key_heads = self.key_heads or dims.heads
        if dims.heads % key_heads:
            raise RecipeError(
                f"short_conv: {dims.heads} heads are no multiple of {key_heads} heads of keys; give key_heads a number "
                f"that divides {dims.heads}"
            )
        return StreamShape(key_heads, key_heads, dims.heads, self.key_dim or dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Convolved:
        return Convolved(self, dims)

    def state_bytes(self, dims: Dims, element: int) -> int:
        shape = self.shape(dims)
        channels = (shape.query_heads + shape.key_heads) * shape.key_dim + shape.value_heads * shape.value_dim
        return (self.kernel - 1) * (channels * element + 8)


@dataclass(frozen=True, eq=False)
class LastInputs(State):
    """The last inputs of a convolution [batch, kernel - 1, channels], and their segments [batch, kernel - 1]."""

    inputs: Tensor
    segments: Tensor


class Convolved(Linears):
    """The module of `short_conv`: one convolution over the channels of queries, keys and values."""

    def __init__(self, part: ShortConv, dims: Dims) -> None:
        super().__init__(dims, part.shape(dims))
        self.act = F.silu if part.act == "silu" else torch.nn.Identity()
        self.widths = [one.out_features for one in (self.q, self.k, self.v)]
        self.weight = nn.Parameter(torch.empty(sum(self.widths), part.kernel).uniform_(-1, 1) * part.kernel**-0.5)
        self.bias = nn.Parameter(torch.zeros(sum(self.widths))) if part.bias else None

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State]:
        """The streams of `x`, and the inputs that the next tokens need."""
        inputs = torch.cat((self.q(x), self.k(x), self.v(x)), dim=-1)
        before = self.weight.shape[1] - 1
        if state is None:
            none = segments.new_full((len(segments), before), NOWHERE)
            state = LastInputs(inputs.new_zeros(len(inputs), before, inputs.shape[-1]), none)
        assert isinstance(state, LastInputs)
        known = torch.cat((state.inputs, inputs), dim=1)
        own = torch.cat((state.segments, segments), dim=1)
        q, k, v = self.act(self._convolved(known, own)).split(self.widths, dim=-1)
        return self.streams(q, k, v, segments), LastInputs(known[:, -before:], own[:, -before:])

    def _convolved(self, known: Tensor, segments: Tensor) -> Tensor:
        """Of inputs that begin kernel - 1 tokens before the first new one: [batch, new tokens, channels]."""
        kernel = self.weight.shape[1]
        count = known.shape[1] - kernel + 1
        found = torch.zeros_like(known[:, :count]) if self.bias is None else self.bias
        for place in range(kernel):
            alike = segments[:, place : place + count] == segments[:, kernel - 1 :]
            found = found + known[:, place : place + count] * self.weight[:, place] * alike[..., None]
        return found
