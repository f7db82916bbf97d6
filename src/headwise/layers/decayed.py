"""What mixes whose memory only decays and adds have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.layers.base import Lane, StreamShape
from headwise.layers.running import Running


@dataclass(frozen=True)
class Decayed(Running):
    """A running mix without a sum of weights to divide by."""

    def memory(self, shape: StreamShape) -> tuple[int, int]:
        return shape.key_dim, shape.value_dim


def decayed_sum(lane: Lane, values: Tensor) -> Tensor:
    """`o_i = sum_{j <= i} (q_i * a_(j+1) * ... * a_i) . k_j v_j`, with a_i = exp(gate "decay") of token i, written out
    as sums over pairs of tokens: [tokens, value dim]."""
    decay = lane.gates["decay"].exp()
    read = []
    for i, q in enumerate(lane.q):
        weights, left = [], torch.ones_like(decay[0])
        for j in range(i, -1, -1):
            weights.append((q * left * lane.k[j]).sum())
            left = left * decay[j]
        read.append(torch.stack(weights[::-1]) @ values[: i + 1])
    return torch.stack(read)
