"""Multi-head latent attention: keys and values of all heads are read from one stored latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import RecipeError
from headwise.knobs import NonNegative, Positive
from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.base import Dims, Project, Projection, State, Streams, StreamShape
from headwise.layers.norms import RmsNorm
from headwise.layers.projections import linear, split


@layer_part("project", "mla")
@dataclass(frozen=True)
class Mla(Project):
    """A token is stored as one latent, from which each head has its keys and values.

    rank: channels of the latent. rope: channels beside it, of one key for all heads, which alone a position turns.
    query_rank: channels through which queries are made; 0 makes them in one step.
    """

    rank: Positive
    rope: NonNegative = 0
    query_rank: NonNegative = 0
    card: ClassVar[LayerCard] = LayerCard(
        "Multi-head latent attention",
        "DeepSeek-V2, 2405.04434, section 2.1; absorbed as in its section 2.1.2",
        "a latent is stored in place of keys and values",
        "c = norm(W_dkv x), k_h = [W_uk,h c, k_rope], v_h = W_uv,h c; absorbed: q_h = [W_uk,h^T q_nope, q_rope], "
        "k = [c, k_rope], v = c",
        deviations="always absorbed: a prompt costs products of the latent's width, where the paper expands its keys",
    )

    def shape(self, dims: Dims) -> StreamShape:
        if self.rank > dims.width:
            raise RecipeError(
                f"mla: a latent of {self.rank} channels is wider than the model's {dims.width}; give a rank of "
                f"{dims.width} or less"
            )
        if self.rope % 2:
            raise RecipeError(f"mla: {self.rope} channels cannot be turned in pairs; give rope an even number")
        return StreamShape(dims.heads, 1, 1, self.rank + self.rope, self.rank, shared=True, turned=self.rope)

    def build(self, dims: Dims) -> Latent:
        self.shape(dims)
        return Latent(self, dims)


class Latent(Projection):
    """MLA's module. Names of weights are DeepSeek's, as far as there are such."""

    def __init__(self, mla: Mla, dims: Dims) -> None:
        super().__init__()
        self.mla, self.heads, self.head_dim = mla, dims.heads, dims.head_dim
        own = dims.heads * (dims.head_dim + mla.rope)
        self.q_a = linear(dims.width, mla.query_rank) if mla.query_rank else nn.Identity()
        self.q_norm = RmsNorm(mla.query_rank) if mla.query_rank else nn.Identity()
        self.q_b = linear(mla.query_rank or dims.width, own)
        self.kv_a = linear(dims.width, mla.rank + mla.rope)
        self.kv_norm = RmsNorm(mla.rank)
        self.kv_b = linear(mla.rank, dims.heads * 2 * dims.head_dim)

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State | None]:
        """The latent of `x` as the one head of keys and values, and queries that meet it; there is no state."""
        q, q_rope = split(self.q_b(self.q_norm(self.q_a(x))), self.heads).split((self.head_dim, self.mla.rope), -1)
        latent, k_rope = self.kv_a(x).split((self.mla.rank, self.mla.rope), -1)
        k = torch.cat((self.kv_norm(latent), k_rope), -1)[:, None]
        q = torch.cat((q @ self._up()[0], q_rope), -1)
        scale = (self.head_dim + self.mla.rope) ** -0.5
        rank = self.mla.rank
        return Streams(q, k, k[..., :rank], segments, scale, turned=self.mla.rope, shared=rank), None

    def finish(self, read: Tensor, x: Tensor) -> Tensor:
        """The latents that the heads read, as their values: [batch, heads, tokens, head dim]."""
        return read @ self._up()[1].transpose(1, 2)

    @property
    def finished_dim(self) -> int:
        return self.head_dim

    def _up(self) -> tuple[Tensor, Tensor]:
        """From a latent to a head's keys and to its values, each [heads, head dim, rank]."""
        both = self.kv_b.weight.unflatten(0, (self.heads, 2 * self.head_dim))
        return both[:, : self.head_dim], both[:, self.head_dim :]
