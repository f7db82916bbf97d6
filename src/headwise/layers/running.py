"""Running states: one matrix a head that every token decays, adds to and reads.

All mixes of `linear/` and `delta/` are one recurrence over the memory M [key dim, value dim] of a head, in which each
token has a key k, a query q, decays a (one, or one for each channel of the key) and what it writes under its key, u:

    M <- diag(a) M + k u^T        o = q^T M

where u is its value v in a linear mix, and b (v - k^T diag(a) M) in a delta mix, which writes what is missing alone.
A block of tokens does this at once: with G the running sum of log a, pairs of tokens meet with
A[i, j] = sum_c q[i, c] k[j, c] exp(G[i, c] - G[j, c]), and what a delta mix writes solves a triangular system
(the WY form of 2406.06484, section 3; with decays 2412.06464, section 3.3, and 2510.26692, section 3).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headwise.knobs import BlockSize
from headwise.layers.base import NOWHERE, Mix, State, Streams, StreamShape, heads_of, repeated
from headwise.layers.norms import wide

BESIDE = 16  # tokens whose pairs are computed channel by channel, so that no exponent is above 0


@dataclass(frozen=True, eq=False)
class Memory(State):
    """The memories [batch, heads, key dim, value dim], in float32, and the segment of the last token [batch]."""

    matrix: Tensor
    segment: Tensor


@dataclass(frozen=True)
class Terms:
    """What tokens do to a memory: q and k [batch, heads, tokens, key dim], v [batch, heads, tokens, value dim].

    decay: logarithms [batch, heads, tokens, 1 or key dim], finite and at most 0; None is no decay. beta [batch, heads,
    tokens]: how much of what is missing under its key a token writes; None is a linear mix, which writes its value.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor | None = None
    beta: Tensor | None = None

    def between(self, start: int, end: int) -> Terms:
        """The tokens [start, end)."""
        told = (self.q, self.k, self.v, self.decay, self.beta)
        return Terms(*(one if one is None else one[:, :, start:end] for one in told))  # type: ignore[arg-type]

    def exact(self) -> Terms:
        """In float32, or wider where they come so."""
        told = (self.q, self.k, self.v, self.decay, self.beta)
        return Terms(*(one if one is None else wide(one) for one in told))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Blocked(Mix):
    """A mix that reads a text in blocks of tokens, each after the state that the one before it left.

    block: tokens that are computed at once; results are the same up to rounding.
    """

    block: BlockSize = field(default=64, kw_only=True)

    @abstractmethod
    def read(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        """What the tokens of one block read, in float32 or wider, [batch, heads, tokens, value dim], and the state."""

    def chunk(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        found = []
        for start in range(0, streams.segments.shape[1], self.block):
            one, state = self.read(streams.between(start, start + self.block), state)
            found.append(one)
        return torch.cat(found, dim=2).to(streams.v.dtype), state

    def step(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        found, after = self.read(streams, state)
        return found.to(streams.v.dtype), after


@dataclass(frozen=True)
class Running(Blocked):
    """A mix with one memory a head, which tokens change by their `terms`."""

    @abstractmethod
    def terms(self, streams: Streams) -> Terms:
        """What tokens do to the memory; heads of queries and keys may be fewer than those of values."""

    @abstractmethod
    def memory(self, shape: StreamShape) -> tuple[int, int]:
        """Rows and columns of a head's memory."""

    def finish(self, read: Tensor, streams: Streams) -> Tensor:
        """What is made of what was read of the memory, in float32 or wider."""
        return read

    def empty(self, streams: Streams) -> Memory:
        terms = self.terms(streams.between(0, 0)).exact()
        return nothing(streams, terms.k.shape[-1], terms.v.shape[-1])

    def read(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, Memory)
        found, after = block(self.of_all_heads(streams), streams.segments, state)
        return self.finish(found, streams), after

    def step(self, streams: Streams, state: State) -> tuple[Tensor, State]:
        assert isinstance(state, Memory)
        found, after = step(self.of_all_heads(streams), streams.segments[:, 0], state)
        return self.finish(found, streams).to(streams.v.dtype), after

    def state_bytes(self, shape: StreamShape, tokens: int, element: int) -> int:
        return memory_bytes(shape.heads, *self.memory(shape))

    def of_all_heads(self, streams: Streams) -> Terms:
        """The terms, in float32 or wider, of as many heads as are read."""
        own, heads = self.terms(streams).exact(), heads_of(streams)
        told = (own.q, own.k, own.v, own.decay, own.beta)
        return Terms(*(one if one is None else repeated(one, heads) for one in told))  # type: ignore[arg-type]


def nothing(streams: Streams, rows: int, columns: int) -> Memory:
    """The memory of texts that have not begun, of so many rows and columns a head, in float32 or wider."""
    batch = len(streams.segments)
    matrix = wide(streams.v).new_zeros(batch, heads_of(streams), rows, columns)
    return Memory(matrix, streams.segments.new_full((batch,), NOWHERE))


def memory_bytes(heads: int, rows: int, columns: int) -> int:
    """Bytes of a memory of one text, with the segment of its last token."""
    return 4 * heads * rows * columns + 8


def step(terms: Terms, segment: Tensor, state: Memory) -> tuple[Tensor, Memory]:
    """One token of `segment [batch]` after a state: what it reads, [batch, heads, 1, value dim], and the state then."""
    matrix = state.matrix * (segment == state.segment)[:, None, None, None]
    if terms.decay is not None:
        matrix = matrix * terms.decay.exp().transpose(2, 3)
    write = terms.v if terms.beta is None else terms.beta[..., None] * (terms.v - terms.k @ matrix)
    matrix = matrix + terms.k.transpose(2, 3) @ write
    return terms.q @ matrix, Memory(matrix, segment)


def block(terms: Terms, segments: Tensor, state: Memory) -> tuple[Tensor, Memory]:
    """Some tokens of `segments [batch, tokens]` at once after a state: what they read, and the state after them."""
    q, k, count = terms.q, terms.k, terms.k.shape[2]
    decay = torch.zeros_like(k[..., :1]) if terms.decay is None else terms.decay
    total = decay.cumsum(2)
    last = segments[:, -1:]
    before = (segments == state.segment[:, None])[:, None, :, None]  # tokens of the text that the state ends in
    to_the_end = (segments == last)[:, None, :, None]
    alike = (segments[:, :, None] == segments[:, None, :])[:, None]
    from_state = total.exp() * before
    write = terms.v
    if terms.beta is not None:
        beta = terms.beta[..., None]
        met = (products(k, k, total) * alike).tril(-1) * beta
        missing = beta * (terms.v - (k * from_state) @ state.matrix)
        unit = torch.eye(count, dtype=k.dtype, device=k.device)
        write = torch.linalg.solve_triangular(unit + met, missing, upper=False, unitriangular=True)
    read = (q * from_state) @ state.matrix + (products(q, k, total) * alike) @ write
    left = (k * (total[:, :, -1:] - total).exp() * to_the_end).transpose(2, 3) @ write
    kept = total[:, :, -1:].exp().transpose(2, 3) * (state.segment[:, None] == last)[:, :, None, None]
    return read, Memory(state.matrix * kept + left, last[:, 0])


def products(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """`sum_c a[i, c] b[j, c] exp(total[i, c] - total[j, c])` for j <= i, and 0 elsewhere: [..., tokens, tokens].

    a and b [..., tokens, dim]. total [..., tokens, 1 or dim] falls from token to token, so that no exponent is above 0
    however strong the decay: with one for each channel, tokens that are apart meet at the first token of the later
    one's run (2312.06635, section 4.3).
    """
    count = a.shape[-2]
    if total.shape[-1] == 1:
        return (a @ b.transpose(-1, -2)) * _fallen(total).squeeze(-1)
    rows = []
    for start in range(0, count, BESIDE):
        own = slice(start, start + BESIDE)
        run, meet = total[..., own, :], total[..., start : start + 1, :]
        near = torch.einsum("...ic,...jc,...ijc->...ij", a[..., own, :], b[..., own, :], _fallen(run))
        earlier = b[..., :start, :] * (meet - total[..., :start, :]).exp()
        far = (a[..., own, :] * (run - meet).exp()) @ earlier.transpose(-1, -2)
        later = near.new_zeros(*near.shape[:-1], count - start - near.shape[-1])
        rows.append(torch.cat((far, near, later), dim=-1))
    return torch.cat(rows, dim=-2)


def _fallen(total: Tensor) -> Tensor:
    """exp(total[i] - total[j]) for j <= i and 0 elsewhere, [..., tokens, tokens, dim]."""
    count = total.shape[-2]
    later = torch.ones(count, count, dtype=torch.bool, device=total.device).triu(1)[..., None]
    return (total[..., :, None, :] - total[..., None, :, :]).masked_fill(later, float("-inf")).exp()
