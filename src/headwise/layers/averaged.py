"""Running averages: each row of a memory is the mean of all values so far, under the softmax of a logit of its own.

With the logits l [tokens, rows] of a head, z_t = log sum_(j <= t) exp(l_j) is carried beside the memory, so that a
token decays each row by exp(z_(t-1) - z_t) and writes its value with exp(l_t - z_t) (2405.13956, section 3;
2405.21022, section 3.3). No exponent is above 0, however large the logits.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.layers.base import State, Streams, StreamShape, heads_of, repeated
from headwise.layers.norms import wide
from headwise.layers.running import Blocked, Memory, Terms, block, memory_bytes, nothing


@dataclass(frozen=True, eq=False)
class Averages(State):
    """The averages, as a memory, and the logarithms of what they were divided by, [batch, heads, rows], in float32."""

    memory: Memory
    mass: Tensor


@dataclass(frozen=True)
class Averaged(Blocked):
    """A mix that reads rows of running averages."""

    turns = False

    @abstractmethod
    def rows(self, shape: StreamShape) -> int:
        """How many averages a head keeps."""

    @abstractmethod
    def logits(self, streams: Streams) -> Tensor:
        """How much each row counts each token, as a logarithm: [batch, key heads, tokens, rows]."""

    @abstractmethod
    def asks(self, streams: Streams) -> Tensor:
        """How much each token reads of each row, [batch, query heads, tokens, rows]."""

    def empty(self, streams: Streams) -> Averages:
        rows = self.logits(streams.between(0, 0)).shape[-1]
        memory = nothing(streams, rows, streams.v.shape[-1])
        return Averages(memory, memory.matrix[..., 0])

    def read(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, Averages)
        made = (self.asks(streams), self.logits(streams), streams.v)
        asks, logits, v = (repeated(wide(one), heads_of(streams)) for one in made)
        mass, decay = _masses(logits, streams.segments, state)
        terms = Terms(asks, (logits - mass).exp(), v, decay)
        found, memory = block(terms, streams.segments, state.memory)
        return found, Averages(memory, mass[:, :, -1])

    def state_bytes(self, shape: StreamShape, tokens: int, element: int) -> int:
        rows = self.rows(shape)
        return memory_bytes(shape.heads, rows, shape.value_dim) + 4 * shape.heads * rows


def _masses(logits: Tensor, segments: Tensor, state: Averages) -> tuple[Tensor, Tensor]:
    """log sum exp of each token's own text up to it, and by how much that decays what was there, as logarithms."""
    count = logits.shape[2]
    alike = (segments[:, :, None] == segments[:, None, :]).tril()[:, None, :, :, None]
    mass = logits[:, :, None].masked_fill(~alike, float("-inf")).logsumexp(3)
    goes_on = (segments == state.memory.segment[:, None])[:, None, :, None]
    mass = torch.where(goes_on, torch.logaddexp(mass, state.mass[:, :, None]), mass)
    before = torch.cat((state.mass[:, :, None], mass[:, :, : count - 1]), dim=2)
    last = torch.cat((state.memory.segment[:, None], segments[:, :-1]), dim=1)
    begins = (segments != last)[:, None, :, None]
    return mass, (before - mass).masked_fill(begins, 0.0)


def averages(logits: Tensor, v: Tensor) -> Tensor:
    """The averages up to each token of one head, written out: logits [tokens, rows], v -> [tokens, rows, value dim]."""
    return torch.stack([logits[: i + 1].softmax(0).T @ v[: i + 1] for i in range(len(v))])
