"""What mixes that write by the delta rule have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.layers.base import Lane, Streams, StreamShape
from headwise.layers.norms import EPS, unit
from headwise.layers.running import Running, Terms


@dataclass(frozen=True)
class DeltaRule(Running):
    """A running mix over keys of length 1, which replaces a share beta of what is held under a token's key."""

    def decay(self, streams: Streams) -> Tensor | None:
        """Logarithms of what a token leaves of the memory, [batch, heads, tokens, 1 or key dim]; None: all of it."""
        return streams.gates["decay"]

    def memory(self, shape: StreamShape) -> tuple[int, int]:
        return shape.key_dim, shape.value_dim

    def terms(self, streams: Streams) -> Terms:
        q, k = unit(streams.q) * streams.scale, unit(streams.k)
        return Terms(q, k, streams.v, self.decay(streams), streams.gates["beta"])


def delta_sum(lane: Lane, decay: Tensor) -> Tensor:
    """`M_t = (I - b_t k_t k_t^T) diag(a_t) M_(t-1) + b_t k_t v_t^T, o_t = M_t^T q_t / sqrt(d)`, as matrix products.

    decay: the logarithms of a_t, [tokens, 1 or key dim]. Returns [tokens, value dim].
    """
    q, k = (x / (x.square().sum(-1, keepdim=True) + EPS).sqrt() for x in (lane.q, lane.k))
    width = k.shape[1]
    same = torch.eye(width, dtype=k.dtype)
    memory = k.new_zeros(width, lane.v.shape[1])
    read = []
    for t in range(len(q)):
        rate = lane.gates["beta"][t]
        forget = torch.diag(decay[t].exp().expand(width))
        memory = (same - rate * torch.outer(k[t], k[t])) @ forget @ memory + rate * torch.outer(k[t], lane.v[t])
        read.append(memory.T @ q[t] * lane.scale)
    return torch.stack(read)
