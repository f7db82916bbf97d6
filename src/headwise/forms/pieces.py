"""Calls made of smaller ones, and what sorted queries and sampled keys need: blocks of queries in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.gathered import Gathered
from headwise.forms.lowered import Lowered
from headwise.forms.where import Causal, Where, Window


@dataclass(frozen=True, eq=False)
class Piece:
    """The queries of a range of the t, over the stored keys of a range, by a form that counts both from their first."""

    queries: range
    keys: range
    where: Where


@dataclass(frozen=True, eq=False)
class Composite(Where):
    """Calls over disjoint pairs, whose results add. Each goes to the first backend that accepts it."""

    parts: tuple[Piece, ...]

    def __post_init__(self) -> None:
        counts = sorted({part.where.heads for part in self.parts if part.where.heads is not None})
        if not self.parts or len(counts) > 1:
            raise ShapeError(
                f"Composite needs at least one part, and none with lists for different numbers of heads: {counts}"
            )
        for part in self.parts:
            part.where.check(len(part.queries), len(part.keys))
        for one, other in combinations(self.parts, 2):
            if _meet(one.queries, other.queries) and _meet(one.keys, other.keys) and not _hides(one, other):
                raise HeadwiseError(
                    f"Composite: queries {one.queries} over keys {one.keys} and queries {other.queries} over keys "
                    f"{other.keys} share pairs, which would count twice; make them disjoint"
                )

    @property
    def heads(self) -> int | None:
        return next((part.where.heads for part in self.parts if part.where.heads is not None), None)

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        for part in self.parts:
            if part.queries.stop > t or part.keys.stop > n or part.keys.stop > n - t + part.queries.stop:
                raise ShapeError(
                    f"Composite: queries {part.queries} over keys {part.keys} do not fit {t} queries over {n} keys, "
                    "or are keys after all of them"
                )

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        seen = torch.zeros(self.heads or 1, stop - start, n, dtype=torch.bool, device=device)
        for part in self.parts:
            first, last = max(start, part.queries.start), min(stop, part.queries.stop)
            if first < last:
                own = range(first - part.queries.start, last - part.queries.start)
                shown = part.where.rows(own.start, own.stop, len(part.queries), len(part.keys), device)
                seen[:, first - start : last - start, part.keys.start : part.keys.stop] |= shown.to(seen.device)
        return seen

    def visible_pairs(self, t: int, n: int) -> float:
        self.check(t, n)
        return sum(part.where.visible_pairs(len(part.queries), len(part.keys)) for part in self.parts)


def near(window: int, chunked: bool, seen: int, tokens: int, stored: int) -> Where:
    """What the last `tokens` of `seen` tokens, of which the last `stored` are held, see in a layer with a window: those
    before them in a window that slides, or in one that begins anew every so many tokens, from the first on (Llama 4's
    chunks). At least as many as a window has are held."""
    if not chunked:
        return Window(window - 1)
    first, gone = seen - tokens, seen - stored
    if tokens == 1:
        return Window(first % window)
    edges = [first, *range((first // window + 1) * window, seen, window), seen]
    parts = (
        Piece(range(start - first, stop - first), range(max(0, start // window * window - gone), stop - gone), Causal())
        for start, stop in pairwise(edges)
    )
    return Composite((*parts,))


def _meet(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _hides(one: Piece, other: Piece) -> bool:
    """Whether one piece leaves out what the other, of the same queries and keys, shows."""
    same = (one.queries, one.keys) == (other.queries, other.keys)
    forms = (one.where, other.where)
    return same and any(
        isinstance(part, Gathered) and part.hidden is not None and part.hidden == rest
        for part, rest in (forms, forms[::-1])
    )


@dataclass(frozen=True, eq=False)
class Buckets(Where):
    """Blocks of queries, in any order, and for each block the keys that it reads, which come before all queries.

    queries: int64 [h, g, blocks, r], numbers of queries; one is in one block of its head, and again in it to fill it
    up. keys: int64 [h, blocks, m], stored entries. bias: float [h, blocks, m], which is added to their scaled scores:
    log of how often a key counts, -inf where it does not.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        queries, keys, bias = self.queries, self.keys, self.bias
        fit = queries.dim() == 4 and keys.dim() == 3 and queries.shape[::2] == keys.shape[:2] and keys.numel()
        if not fit or bias.shape != keys.shape or queries.dtype != torch.int64 or keys.dtype != torch.int64:
            raise ShapeError(
                "Buckets needs int64 queries [h, g, blocks, r] and keys [h, blocks, m] and a bias like the keys, got "
                f"{list(queries.shape)} {queries.dtype}, {list(keys.shape)} {keys.dtype} and {list(bias.shape)}"
            )

    @classmethod
    def of_codes(cls, queries: Tensor, keys: Tensor, size: int) -> Buckets:
        """The diagonal of both in the order of their codes, in even blocks of `size` keys at most: queries
        `[h, g, t]`, keys `[h, n]`. Between equal codes the earlier is first."""
        blocks = min(-(-keys.shape[1] // size), queries.shape[2])
        ranks, real = _even(keys.shape[1], blocks, keys.device)
        rows, _ = _even(queries.shape[2], blocks, keys.device)
        bias = torch.zeros(keys.shape[0], *ranks.shape, device=keys.device).masked_fill(~real, -torch.inf)
        return cls(queries.argsort(dim=-1, stable=True)[..., rows], keys.argsort(dim=-1, stable=True)[:, ranks], bias)

    def sampled(self, sample: Tensor, n: int) -> Buckets:
        """The same, beside it reading `sample [m]` of its n keys: each stands for n / m, but for what a block lists."""
        hidden = (self.keys[..., None] == sample).any(2)
        weight = torch.full(hidden.shape, math.log(n / len(sample)), device=hidden.device)
        keys = torch.cat((self.keys, sample.expand(hidden.shape)), 2)
        return Buckets(self.queries, keys, torch.cat((self.bias, weight.masked_fill(hidden, -torch.inf)), 2))

    @property
    def heads(self) -> int:
        return self.queries.shape[0]

    @property
    def causal(self) -> bool:
        return False

    @property
    def lowered(self) -> Lowered:
        return self

    def check(self, t: int, n: int) -> None:
        for what, index, limit in (("queries", self.queries, t), ("keys", self.keys, n)):
            lowest, highest = (int(x) for x in index.aminmax())
            if lowest < 0 or highest >= limit:
                raise HeadwiseError(f"Buckets: {what} {lowest} to {highest} are not all among 0 to {limit - 1}")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        """What any query of the group sees."""
        self.check(t, n)
        h, g, blocks, _ = self.queries.shape
        shown = self.keys.new_zeros(h, blocks, n).scatter_add_(2, self.keys, (self.bias > -torch.inf).long()) > 0
        shown = torch.cat((shown, shown.new_zeros(h, 1, n)), 1)  # a query in no block sees nothing
        block = torch.full((h, g, t), blocks, device=shown.device)
        place = torch.arange(blocks, device=shown.device)[:, None].expand_as(self.queries).flatten(2)
        block.scatter_(2, self.queries.flatten(2), place)
        seen = torch.stack([own[rows].any(0) for own, rows in zip(shown, block[:, :, start:stop], strict=True)])
        return seen.to(device) if device is not None else seen

    def visible_pairs(self, t: int, n: int) -> float:
        """Mean over query heads, as those of a group see different keys."""
        self.check(t, n)
        repeated = (self.queries[..., 1:, None] == self.queries[..., None, :-1]).tril().any(-1).sum(-1)
        rows = self.queries.shape[3] - repeated.double().mean(1)
        return float((rows * (self.bias > -torch.inf).sum(2)).sum(1).mean())


def _even(count: int, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers 0..count-1 in blocks as even as can be, `[blocks, widest]`, shorter ones filled up with their last; and
    which are real."""
    edges = torch.arange(blocks + 1, device=device) * count // blocks
    within = edges[:-1, None] + torch.arange(-(-count // blocks), device=device)
    return torch.minimum(within, edges[1:, None] - 1), within < edges[1:, None]
