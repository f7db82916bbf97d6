"""Scores by a network of one hidden layer that reads query and key together."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import NonNegative
from headwise.layers.base import Dims, StreamShape
from headwise.layers.pairs import Block, Row, Score


@dataclass(frozen=True)
class PairNetwork(Score):
    """w_h . act(A_h q + B_h k + b_h), each head with its own. The hidden channels of a pair are held for a block of
    queries at a time.

    hidden: channels of the hidden layer; 0 is as many as a key has.
    """

    hidden: NonNegative = 0
    numbers: ClassVar[int] = 64  # of the widest usual key

    @abstractmethod
    def act(self, x: Tensor) -> Tensor:
        """The activation of the hidden layer."""

    def learned(self, dims: Dims, shape: StreamShape) -> dict[str, Tensor]:
        heads, dim, hidden = shape.heads, shape.key_dim, self.hidden or shape.key_dim
        return {
            "network_q": torch.randn(heads, dim, hidden) * dim**-0.5,
            "network_k": torch.randn(heads, dim, hidden) * dim**-0.5,
            "network_b": torch.zeros(heads, hidden),
            "network_w": torch.randn(heads, hidden) * hidden**-0.5,
        }

    def scores(self, block: Block) -> Tensor:
        a, b, bias, w = (block.learned[f"network_{name}"].to(block.q.dtype) for name in "qkbw")
        inner = (block.q @ a)[:, :, :, None] + (block.k @ b + bias[:, None])[:, :, None]
        return torch.einsum("bhqkm,hm->bhqk", self.act(inner), w)

    def alone(self, k: Tensor, row: Row) -> Tensor:
        a, b, bias, w = (row.learned[f"network_{name}"] for name in "qkbw")
        return w @ self.act(row.q @ a + k @ b + bias)
