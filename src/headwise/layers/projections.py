"""What projections are made of: linear layers to heads, and the bare projection of `heads`, `gqa` and `mqa`."""

from __future__ import annotations

from torch import Tensor, nn

from headwise.layers.base import Dims, Projection, State, Streams, StreamShape


def split(x: Tensor, heads: int) -> Tensor:
    """[batch, tokens, heads * dim] -> [batch, heads, tokens, dim]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """[batch, heads, tokens, dim] -> [batch, tokens, heads * dim]."""
    return x.transpose(1, 2).flatten(2)


def linear(inside: int, outside: int) -> nn.Linear:
    """A linear layer without a bias."""
    return nn.Linear(inside, outside, bias=False)


class Linears(Projection):
    """Queries, keys and values by a linear layer each."""

    def __init__(self, dims: Dims, shape: StreamShape) -> None:
        super().__init__()
        self.shape = shape
        self.q = linear(dims.width, shape.query_heads * shape.key_dim)
        self.k = linear(dims.width, shape.key_heads * shape.key_dim)
        self.v = linear(dims.width, shape.value_heads * shape.value_dim)

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Streams, State | None]:
        """The streams of `x`; there is no state."""
        return self.streams(self.q(x), self.k(x), self.v(x), segments), None

    def streams(self, q: Tensor, k: Tensor, v: Tensor, segments: Tensor) -> Streams:
        """The streams of what was projected, each [batch, tokens, heads * dim]."""
        shape = self.shape
        heads = (split(q, shape.query_heads), split(k, shape.key_heads), split(v, shape.value_heads))
        return Streams(*heads, segments, shape.key_dim**-0.5)
