"""Linear attention whose weights sum to 1 without a division: a multiple of the product of features, plus a number.

    w_ij = a_i f(q_i).f(k_j) + b_i

where a and b follow from the sum of products, f(q_i).sum_j f(k_j), and how many keys there are. One memory holds all
sums: that of the keys' features with a 1 beside them, times the values with a 1 beside them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.layers.base import Lane, State, Streams, StreamShape
from headwise.layers.norms import wide
from headwise.layers.running import Blocked, Memory, Running, Terms, block


@dataclass(frozen=True)
class Offset(Running):
    """A running mix with weights a f(q).f(k) + b."""

    turns = False

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """The features [..., dim] of queries or keys `x [..., dim]`."""

    @abstractmethod
    def weights(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """The weights of a query [dim] on the keys `k [keys, dim]` that it sees, as the paper writes them."""

    @abstractmethod
    def numbers(self, total: Tensor, count: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """a and b of a query: `total` is the sum of its products, over `count` keys; `scale` is of a product."""

    def terms(self, streams: Streams) -> Terms:
        q, k = (self.features(wide(one)) for one in (streams.q, streams.k))
        return Terms(F.pad(q, (0, 1)), F.pad(k, (0, 1), value=1.0), F.pad(wide(streams.v), (0, 1), value=1.0))

    def memory(self, shape: StreamShape) -> tuple[int, int]:
        return shape.key_dim + 1, shape.value_dim + 1

    def read(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, Memory)
        terms = self.of_all_heads(streams)
        met, after = block(terms, streams.segments, state)
        for_all = F.pad(torch.zeros_like(terms.q[..., :-1]), (0, 1), value=1.0)  # reads the sums under the 1
        alike, _ = block(replace(terms, q=for_all), streams.segments, state)
        a, b = self.numbers(met[..., -1:], alike[..., -1:], streams.scale)
        return a * met[..., :-1] + b * alike[..., :-1], after

    step = Blocked.step

    def alone(self, lane: Lane) -> Tensor:
        read = [self.weights(q, lane.k[: i + 1], lane.scale) @ lane.v[: i + 1] for i, q in enumerate(lane.q)]
        return torch.stack(read)
