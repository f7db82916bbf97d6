"""Linear attention: a kernel of query and key that is a product of features, so that sums over keys are a memory."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.layers.base import Lane, Streams, StreamShape
from headwise.layers.norms import wide
from headwise.layers.running import Running, Terms

EPS = 1e-6  # added to the sum of weights, as in the code of 2006.16236


@dataclass(frozen=True)
class Mapped(Running):
    """A running mix with weights f(q).f(k), divided by their sum."""

    turns = False  # turned features would not be positive

    @abstractmethod
    def features(self, x: Tensor, scale: float) -> Tensor:
        """The features [..., m] of queries or keys `x [..., dim]`; `scale` is of their product."""

    @abstractmethod
    def kernel(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """The weight of one query [dim] and one key [dim], as the paper writes it, without features where it can be."""

    def terms(self, streams: Streams) -> Terms:
        q, k = (self.features(wide(one), streams.scale) for one in (streams.q, streams.k))
        return Terms(q, k, F.pad(wide(streams.v), (0, 1), value=1.0))

    def finish(self, read: Tensor, streams: Streams) -> Tensor:
        return read[..., :-1] / (read[..., -1:] + EPS)

    def memory(self, shape: StreamShape) -> tuple[int, int]:
        return self.features(torch.zeros(shape.key_dim), 1.0).shape[-1], shape.value_dim + 1

    def alone(self, lane: Lane) -> Tensor:
        read = []
        for i, q in enumerate(lane.q):
            weights = torch.stack([self.kernel(q, k, lane.scale) for k in lane.k[: i + 1]])
            read.append(weights @ lane.v[: i + 1] / (weights.sum() + EPS))
        return torch.stack(read)


def polynomial(x: Tensor, order: int) -> Tensor:
    """Features of `x [..., dim]` whose product is exp(product) as a Taylor polynomial, of order 1 or 2."""
    squares = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
    return torch.cat((torch.ones_like(x[..., :1]), x, *([squares] if order == 2 else [])), dim=-1)
