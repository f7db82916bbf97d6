"""Compressed convolutional attention: few heads, mixed along tokens and channels before they meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import RecipeError
from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import NOWHERE, Dims, Project, Projection, State, Streams, StreamShape
from headwise.layers.norms import unit, wide
from headwise.layers.project.short_conv import LastInputs
from headwise.layers.projections import linear, split

BEFORE = 2  # tokens that the two convolutions reach back


@layer_part("project", "cca")
@dataclass(frozen=True)
class Cca(Project):
    """Attention wholly in a latent of fewer heads: queries and keys pass two causal convolutions over pairs of tokens,
    by channel and by head, and are normed with the mean of both; half of a value is of the token before.

    query_heads: heads of the latent. kv_heads: of its keys and values, of which query_heads is a multiple.
    """

    query_heads: Positive = 2
    kv_heads: Positive = 1
    card: ClassVar[LayerCard] = LayerCard(
        "Compressed convolutional attention",
        "Compressed Convolutional Attention, 2510.04476, section 3",
        "queries, keys and values are compressed together, and made of the tokens before as well",
        "[q, k] = conv_head(conv_channel(W [x])) + mean of both before it; q, k <- sqrt(d) q / |q|, e^t sqrt(d) k / "
        "|k|; v_t = [W_v x_t, W_w x_(t-1)]",
        systems=(268,),
        deviations="written from what others tell of the paper, not beside it; as told, its values shift half of the "
        "channels of all heads, here half of each head's, so that one head of values will do; a state holds what the "
        "convolutions reach back to, 2 tokens",
    )

    def shape(self, dims: Dims) -> StreamShape:
        if self.query_heads % self.kv_heads:
            raise RecipeError(
                f"cca: {self.query_heads} heads of queries are no multiple of {self.kv_heads} of keys and values; give "
                f"kv_heads a number that divides {self.query_heads}"
            )
        if dims.head_dim % 2:
            raise RecipeError(f"cca: values of {dims.head_dim} channels have no half; give heads an even width")
        return StreamShape(self.query_heads, self.kv_heads, self.kv_heads, dims.head_dim, dims.head_dim)

    def build(self, dims: Dims) -> Compressed:
        return Compressed(self.shape(dims), dims)

    def state_bytes(self, dims: Dims, element: int) -> int:
        channels = (self.query_heads + self.kv_heads) * dims.head_dim + self.kv_heads * dims.head_dim // 2
        return BEFORE * (channels * element + 8)


class Compressed(Projection):
    """The module of `cca`. Heads of queries come before those of keys."""

    def __init__(self, shape: StreamShape, dims: Dims) -> None:
        super().__init__()
        self.shape = shape
        heads, dim, half = shape.query_heads + shape.key_heads, shape.key_dim, shape.key_heads * shape.value_dim // 2
        self.qk, self.v = linear(dims.width, heads * dim), linear(dims.width, half)
        self.shifted = linear(dims.width, half)
        self.by_channel = nn.Parameter(torch.empty(2, heads * dim).uniform_(-1, 1) * 2**-0.5)
        self.by_head = nn.Parameter(torch.empty(2, heads, dim, dim).uniform_(-1, 1) * (2 * dim) ** -0.5)
        self.temperature = nn.Parameter(torch.zeros(shape.key_heads))

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State]:
        """The streams of `x [batch, tokens, width]`, and what the next two tokens need of it."""
        made = torch.cat((self.qk(x), self.shifted(x)), dim=-1)
        if state is None:
            none = segments.new_full((len(segments), BEFORE), NOWHERE)
            state = LastInputs(made.new_zeros(len(made), BEFORE, made.shape[-1]), none)
        assert isinstance(state, LastInputs)
        known, own = torch.cat((state.inputs, made), dim=1), torch.cat((state.segments, segments), dim=1)
        qk, shifted = known.split((self.qk.out_features, self.shifted.out_features), dim=-1)
        q, k = self._latents(qk, own)
        v = torch.cat((split(self.v(x), k.shape[1]), split(_before(shifted[:, 1:], own[:, 1:]), k.shape[1])), dim=-1)
        return Streams(q, k, v, segments, q.shape[-1] ** -0.5), LastInputs(known[:, -BEFORE:], own[:, -BEFORE:])

    def _latents(self, qk: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of inputs `qk [batch, 2 + tokens, channels]` that begin two tokens early."""
        heads = (self.shape.query_heads, self.shape.key_heads)
        mixed = qk[:, 1:] * self.by_channel[1] + _before(qk, own) * self.by_channel[0]
        now, last = split(mixed[:, 1:], sum(heads)), split(_before(mixed, own[:, 1:]), sum(heads))
        q, k = (now @ self.by_head[1] + last @ self.by_head[0]).split(heads, dim=1)
        q_mean, k_mean = split(qk[:, BEFORE:], sum(heads)).split(heads, dim=1)
        group = heads[0] // heads[1]
        q = q + (q_mean + k_mean.repeat_interleave(group, dim=1)) / 2
        k = k + (q_mean.unflatten(1, (heads[1], group)).mean(2) + k_mean) / 2
        length = self.shape.key_dim**0.5
        warmth = wide(self.temperature).exp()[:, None, None]
        return (unit(q) * length).to(qk.dtype), (unit(k) * length * warmth).to(qk.dtype)


def _before(x: Tensor, segments: Tensor) -> Tensor:
    """Of each token but the first, `x [batch, tokens, channels]` of the one before it, and 0 where a text begins."""
    return x[:, :-1] * (segments[:, 1:] == segments[:, :-1])[..., None]
