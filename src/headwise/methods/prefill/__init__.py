"""Prefill: which (query, key) pairs the prompt computes. Nothing is forgotten. The verb is `where`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar

import torch
from torch.nn.functional import pad

from headwise.attention.view import View
from headwise.attention.where import Blocks, Where, Window
from headwise.choose import choose_mask
from headwise.errors import HeadwiseError
from headwise.registry import Card


@dataclass(frozen=True)
class Prefill:
    """Base of the prefill patterns."""

    card: ClassVar[Card]
    needs: ClassVar[frozenset[str]] = frozenset()

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Prefill | None:
        """The pattern with the knobs of one KV head, told by the plan's tensors [layers, KV heads, ...]; None: the head
        reads everything."""
        return self

    def where(self, view: View) -> Where:
        """The pairs to compute for this chunk: its t queries (`view.queries`) are the last t of the n stored tokens."""
        raise NotImplementedError


@dataclass(frozen=True)
class Windowed(Prefill):
    """Base of the patterns of the first tokens and a window of the latest, the same for all heads of a view.

    sinks: first tokens that every query reads. window: latest tokens that a query reads, itself included.
    """

    sinks: int = 128
    window: int = 1024

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1:
            raise HeadwiseError(f"sinks must be 0 or more and window 1 or more, got {self.sinks} and {self.window}")

    def reach(self, seen: int) -> int:
        """Latest tokens that a query reads, itself included, once the heads have seen so many."""
        return self.window

    def where(self, view: View) -> Where:
        """Window and sinks."""
        return Window(self.reach(view.seen) - 1, self.sinks)

    def plain(self, view: View) -> Where:
        """The same as a map of 1 x 1 blocks, pair by pair."""
        t, n, reach = view.queries.shape[2], view.positions.shape[1], self.reach(view.seen)
        rows = [[j < self.sinks or i - j < reach for j in range(n)] for i in range(n - t, n)]
        return Blocks.from_map(1, torch.tensor([rows]))


@dataclass(frozen=True)
class Grid:
    """Blocks of `size` tokens as `Blocks` counts them: query blocks over the last t of n tokens, key blocks over all n.

    starts, ends: storage index of the first and last query of each query block, int64 [query blocks].
    """

    size: int
    stored: int
    starts: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def of(cls, size: int, queries: int, stored: int, device: torch.device) -> Grid:
        """The grid of the last `queries` of `stored` tokens."""
        starts = torch.arange(stored - queries, stored, size, device=device)
        return cls(size, stored, starts, (starts + size - 1).clamp(max=stored - 1))

    @property
    def keys(self) -> torch.Tensor:
        """Storage index of the first key of each key block, int64 [key blocks]."""
        return torch.arange(0, self.stored, self.size, device=self.starts.device)

    @property
    def past(self) -> torch.Tensor:
        """Key blocks that begin no later than a query block ends: bool [query blocks, key blocks]."""
        return self.keys <= self.ends[:, None]

    def near(self, before: int = 0) -> torch.Tensor:
        """Key blocks that hold a query block's own tokens, and the `before` blocks before them: [query, key blocks]."""
        return self.past & (self.keys // self.size >= self.starts[:, None] // self.size - before)

    def forced(self) -> torch.Tensor:
        """What every pattern of chosen blocks reads: a query block's own tokens and the first block."""
        return self.near() | (self.keys == 0)

    def best(self, scores: torch.Tensor, counts: int | torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
        """The `counts` best past key blocks of each query block, `forced` ones included.

        counts: one, [query blocks] or [h, query blocks]. scores [h, query blocks, key blocks]; forced [query blocks,
        key blocks] or with h before. Bool like scores.
        """
        past = self.past
        wanted = torch.as_tensor(counts, device=scores.device).expand(scores.shape[:2])
        chosen = torch.stack(  # head by head, as choosing takes several times the memory of the scores
            [
                choose_mask(one.masked_fill(~past, -torch.inf), count, must & past)
                for one, count, must in zip(scores, wanted, forced.expand_as(scores), strict=True)
            ]
        )
        return chosen & past

    def blocks(self, map: torch.Tensor) -> Blocks:
        """The form of a bool map [h, query blocks, key blocks]; what lies in the future is left out."""
        return Blocks.from_map(self.size, map & self.past)


def group_sums(x: torch.Tensor, size: int) -> torch.Tensor:
    """Sums [..., blocks] of blocks of `size` entries of x [..., n]; the last block may be short."""
    return pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size)).sum(-1)


def block_means(x: torch.Tensor, size: int) -> torch.Tensor:
    """Means [h, blocks, d] of blocks of `size` entries of x [h, n, d]; the last block may be short."""
    counts = group_sums(torch.ones(x.shape[1], device=x.device), size)
    return group_sums(x.mT, size).mT / counts[:, None]


def group_peaks(x: torch.Tensor, size: int) -> torch.Tensor:
    """Largest entry [h, blocks, d] of each channel of x [h, n, d] in blocks of `size` tokens."""
    return pad(x, (0, 0, 0, -x.shape[1] % size), value=-torch.inf).unflatten(1, (-1, size)).amax(2)


def by_distance(rows: torch.Tensor) -> torch.Tensor:
    """Sums [h, n] of attention rows [h, w, n] of the last w queries along each distance query - key."""
    w, n = rows.shape[1:]
    along = torch.zeros_like(rows[:, 0])
    for i in range(w):
        reach = n - w + i + 1
        along[:, :reach] += rows[:, i, :reach].flip(1)
    return along


@dataclass(frozen=True)
class Boundary(Prefill):
    """Base of the patterns by modality. Every kind of mark is a modality; what no mark covers is of kind `text`, and
    where marks overlap the one that starts later counts.

    verticals, slashes: tokens of columns and diagonals that each pattern reads per KV head, in whole blocks, beside the
    first block and the query block's own. last: queries of each modality the estimate is made from. size: tokens per
    block.
    """

    verticals: int = 1000
    slashes: int = 2048
    last: int = 64
    size: int = 64

    needs = frozenset({"keys", "queries", "marks"})

    def __post_init__(self) -> None:
        for knob, least in (("verticals", 0), ("slashes", 0), ("last", 1), ("size", 1)):
            if getattr(self, knob) < least:
                raise HeadwiseError(f"{knob} must be {least} or more tokens, got {getattr(self, knob)}")

    def of_keys(self, kinds: torch.Tensor) -> torch.Tensor:
        """The group of keys that a token of each kind is in, int64 like `kinds`."""
        raise NotImplementedError

    def where(self, view: View) -> Where:
        """The patterns of all modalities as one map of blocks."""
        grid = Grid.of(self.size, view.queries.shape[2], view.count, view.positions.device)
        return grid.blocks(torch.stack([self._map(view.subset((head,)), grid) for head in range(len(view.heads))]))

    def _map(self, view: View, grid: Grid) -> torch.Tensor:
        """The blocks that one head reads: bool [query blocks, key blocks]."""
        kinds = _kinds(view)
        asking, groups = kinds[view.query_positions], self.of_keys(kinds)[view.positions[0].long()]
        distance = (grid.ends[:, None] // self.size - grid.keys // self.size).clamp(min=0)
        forced = grid.forced()
        read = forced.clone()
        for kind in asking.unique():
            queries = (asking == kind).nonzero()[:, 0]
            last, rows = queries[-self.last :], (queries // self.size).unique()
            own = last // self.size
            seen = _observed(view, last)
            for group in groups.unique():
                held = groups == group
                blocks = group_sums(seen * held, self.size).masked_fill(forced[own], 0.0)  # [w, key blocks]
                along = torch.zeros_like(blocks[0]).index_add(0, distance[own].flatten(), blocks.flatten())
                column, diagonal = self._chosen(torch.stack((blocks.sum(0), along)))
                there = group_sums(held.float(), self.size) > 0
                read[rows] |= (column | diagonal[distance[rows]]) & there
        return read

    def _chosen(self, scores: torch.Tensor) -> torch.Tensor:
        """The best columns and diagonals, bool like scores [2, key blocks]."""
        counts = [-(-tokens // self.size) for tokens in (self.verticals, self.slashes)]
        return choose_mask(scores, torch.tensor(counts, device=scores.device), torch.zeros_like(scores).bool())

    def plain(self, view: View) -> Where:
        """The same with one softmax row and one pair of blocks at a time."""
        (heads, group, t, _), n, size = view.queries.shape, view.count, self.size
        grid, kinds = Grid.of(size, t, n, view.positions.device), _kinds(view)
        asking, read = kinds[view.query_positions].tolist(), grid.forced().repeat(heads, 1, 1)
        blocks = range(len(grid.keys))
        ends, forced = (grid.ends // size).tolist(), grid.forced().tolist()
        for h in range(heads):
            groups, keys = self.of_keys(kinds)[view.positions[h]].tolist(), view.keys[h].double()
            for kind, to in product(set(asking), set(groups)):
                scores = torch.zeros(2, len(blocks), dtype=torch.float64)
                queries = [i for i in range(t) if asking[i] == kind]
                for i, g in product(queries[-self.last :], range(group)):
                    row = (keys[: n - t + i + 1] @ view.queries[h, g, i].double() * view.scale).softmax(0)
                    for j, weight in enumerate(row.tolist()):
                        if groups[j] == to and not forced[i // size][j // size]:
                            scores[0, j // size] += weight
                            scores[1, ends[i // size] - j // size] += weight
                column, diagonal = self._chosen(scores).tolist()
                for q, k in product({i // size for i in queries}, blocks):
                    wanted = k <= ends[q] and (column[k] or diagonal[ends[q] - k])
                    read[h, q, k] |= wanted and to in groups[k * size : (k + 1) * size]
        return grid.blocks(read)


def _kinds(view: View) -> torch.Tensor:
    """The modality of every position, int64 [seen]; text is 0."""
    names = ["text", *sorted({mark.kind for mark in view.marks} - {"text"})]
    kinds = torch.zeros(view.seen, dtype=torch.int64, device=view.positions.device)
    for mark in view.marks:
        kinds[mark.start : mark.end] = names.index(mark.kind)
    return kinds


def _observed(view: View, rows: torch.Tensor) -> torch.Tensor:
    """Attention [w, n] of the w queries at `rows` of a view of one head, mean over its group."""
    asked = {"queries": view.queries[:, :, rows], "query_positions": view.query_positions[rows]}
    return replace(view, granted={**view.granted, **asked}).observe(len(rows))[0].mean(0)
