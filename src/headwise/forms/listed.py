"""Forms that hold lists for each head: blocks, tokens, columns and diagonals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.lowered import Indices, Lowered
from headwise.forms.ragged import ascending, below, bounds, marks, seen_by
from headwise.forms.where import MOST, Where, positions


@dataclass(frozen=True, eq=False)
class Blocks(Where):
    """Per head and block of `size` queries, the blocks of `size` keys that it sees (causal inside, always).

    Query block b holds queries b * size.. of the t queries; key blocks count over 0..n. Lists lie end to end: query
    block b of head i sees `columns[offsets[i, b] : offsets[i, b + 1]]`, ascending. `offsets [h, query_blocks + 1]` and
    `columns [total]` are int64. Build from a bool map with `Blocks.from_map`.
    """

    size: int
    offsets: Tensor
    columns: Tensor
    highest: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        offsets, columns = self.offsets, self.columns
        if not 1 <= self.size <= MOST:
            raise HeadwiseError(f"Blocks(size={self.size}): a block holds 1 to {MOST} tokens")
        if offsets.dim() != 2 or columns.dim() != 1 or offsets.shape[1] < 2 or not offsets.shape[0]:
            raise ShapeError(
                f"Blocks needs offsets [h, query_blocks + 1] and columns [total], got {list(offsets.shape)} and "
                f"{list(columns.shape)}; Blocks.from_map(size, map) builds both"
            )
        if offsets.dtype != torch.int64 or columns.dtype != torch.int64:
            raise ShapeError(f"Blocks needs int64 offsets and columns, got {offsets.dtype} and {columns.dtype}")
        counts = offsets.diff(dim=1).flatten()
        joined = bool((offsets[1:, 0] == offsets[:-1, -1]).all()) and int(offsets[0, 0]) == 0
        if not joined or bool((counts < 0).any()) or int(offsets[-1, -1]) != columns.shape[0]:
            raise HeadwiseError(
                "Blocks: offsets must start at 0, never fall, go on from head to head and end at the "
                f"{columns.shape[0]} columns; Blocks.from_map(size, map) builds them"
            )
        highest = -1
        if columns.shape[0]:
            row = torch.arange(counts.shape[0], device=counts.device).repeat_interleave(counts)
            rising = bool(((columns[1:] > columns[:-1]) | (row[1:] != row[:-1])).all())
            highest = bounds("Blocks.columns", columns, rising, "sort each query block's list and drop repeats")
        object.__setattr__(self, "highest", highest)

    @classmethod
    def from_map(cls, size: int, map: Tensor) -> Blocks:
        """From a bool `map [h, query_blocks, key_blocks]`, True where the block is seen."""
        if map.dim() != 3 or map.dtype != torch.bool:
            raise ShapeError(
                f"Blocks.from_map takes a bool [h, query_blocks, key_blocks], got {list(map.shape)} {map.dtype}"
            )
        heads, query_blocks, _ = map.shape
        ends = map.sum(-1).flatten().cumsum(0)
        offsets = torch.zeros(heads, query_blocks + 1, dtype=torch.int64, device=map.device)
        offsets[:, 1:] = ends.view(heads, query_blocks)
        offsets[1:, 0] = offsets[:-1, -1]
        return cls(size, offsets, map.nonzero()[:, 2].contiguous())

    @property
    def heads(self) -> int:
        return self.offsets.shape[0]

    @property
    def lowered(self) -> Lowered:
        return self

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        query_blocks = -(-t // self.size)
        if query_blocks != self.offsets.shape[1] - 1:
            raise ShapeError(
                f"Blocks has lists for {self.offsets.shape[1] - 1} query blocks, but {t} queries in blocks of "
                f"{self.size} make {query_blocks}"
            )
        below("Blocks.columns", self.highest, -(-n // self.size), f"key blocks of {self.size} over {n} tokens")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        device = device or self.columns.device
        queries, keys = positions(start, stop, t, n, device)
        first, last = start // self.size, -(-stop // self.size)
        seen = torch.zeros(self.heads, last - first, -(-n // self.size), dtype=torch.bool, device=device)
        offsets = self.offsets[:, first : last + 1].to(device)
        columns = self.columns.to(device)
        for head, edges in enumerate(offsets):
            row = torch.arange(last - first, device=device).repeat_interleave(edges.diff())
            seen[head, row, columns[edges[0] : edges[-1]]] = True
        row = torch.arange(start, stop, device=device) // self.size - first
        return seen[:, row][:, :, keys[0] // self.size] & (keys <= queries)

    def visible_pairs(self, t: int, n: int) -> float:
        self.check(t, n)
        query_blocks = self.offsets.shape[1] - 1
        block = torch.arange(query_blocks, device=self.columns.device).repeat(self.heads)
        block = block.repeat_interleave(self.offsets.diff(dim=1).flatten())
        low = self.columns * self.size
        width = (low + self.size).clamp(max=n) - low
        begin = n - t + block * self.size
        end = (begin + self.size).clamp(max=n)

        def seen_before(query: Tensor) -> Tensor:
            """Pairs of this key block with all queries below `query`: a triangle, then full rows."""
            depth = (query - low).clamp(min=0)
            corner = torch.minimum(depth, width)
            return corner * (corner + 1) // 2 + (depth - width).clamp(min=0) * width

        return float((seen_before(end) - seen_before(begin)).sum()) / self.heads


@dataclass(frozen=True, eq=False)
class Tokens(Where):
    """Per KV head, the stored tokens that its queries see (causal too).

    `indices`: h int64 tensors, ascending without repeats, of any lengths (0 too); or one tensor `[h, m]`. Kept as a
    tuple; `table [h, m]` is there too when all heads have the same count, else None.
    """

    indices: tuple[Tensor, ...]
    table: Tensor | None = field(init=False, repr=False)
    highest: int = field(init=False, repr=False)

    def __init__(self, indices: Sequence[Tensor] | Tensor) -> None:
        fix = "sort them (indices.sort(dim=-1).values)"
        table: Tensor | None = None
        if isinstance(indices, Tensor):
            if indices.dim() != 2 or indices.dtype != torch.int64:
                raise ShapeError(f"Tokens takes int64 [h, m] or h lists, got {list(indices.shape)} {indices.dtype}")
            table = indices
        elif len({(one.shape, one.dtype) for one in indices}) == 1 and indices[0].dim() == 1:
            table = torch.stack(tuple(indices))
        if table is None or not table.numel() or table.dtype != torch.int64:
            highest = ascending("Tokens", tuple(indices), fix)
        else:
            rising = bool((table[:, 1:] > table[:, :-1]).all())
            ends = table[:, :: max(1, table.shape[1] - 1)] if rising else table
            highest = bounds("Tokens", ends, rising, fix)
        if not len(indices):
            raise ShapeError("Tokens needs the list of at least one head")
        object.__setattr__(self, "indices", tuple(indices))
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "highest", highest)

    @property
    def heads(self) -> int:
        return len(self.indices)

    @property
    def lowered(self) -> Lowered:
        return Indices(self.indices, self.table)

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        below("Tokens", self.highest, n, "stored tokens")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        device = device or self.indices[0].device
        queries, keys = positions(start, stop, t, n, device)
        chosen = marks(self.indices, n, device)
        return chosen[:, None] & (keys <= queries)

    def visible_pairs(self, t: int, n: int) -> float:
        self.check(t, n)
        return sum(seen_by(one, t, n) for one in self.indices) / self.heads


@dataclass(frozen=True, eq=False)
class VerticalSlash(Where):
    """Per head, key columns seen by all later queries, and diagonals at a distance query - key (arXiv 2407.02490).

    `verticals`, `slashes`: h int64 tensors each, ascending without repeats, of any lengths.
    """

    verticals: tuple[Tensor, ...]
    slashes: tuple[Tensor, ...]
    highest: tuple[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.verticals) != len(self.slashes) or not self.verticals:
            raise ShapeError(
                f"VerticalSlash needs both lists for each head, got {len(self.verticals)} verticals and "
                f"{len(self.slashes)} slashes; an empty tensor stands for none"
            )
        fix = "sort each head's list and drop repeats"
        highest = (ascending("verticals", self.verticals, fix), ascending("slashes", self.slashes, fix))
        object.__setattr__(self, "highest", highest)

    @property
    def heads(self) -> int:
        return len(self.verticals)

    @property
    def lowered(self) -> Lowered:
        return self

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        below("VerticalSlash.verticals", self.highest[0], n, "stored tokens")
        below("VerticalSlash.slashes", self.highest[1], n, "distances")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        device = device or self.verticals[0].device
        queries, keys = positions(start, stop, t, n, device)
        columns = marks(self.verticals, n, device)[:, None]
        diagonals = marks(self.slashes, n, device)[:, (queries - keys).clamp(min=0)]
        return (columns | diagonals) & (keys <= queries)

    def visible_pairs(self, t: int, n: int) -> float:
        self.check(t, n)
        total = 0
        for columns, slashes in zip(self.verticals, self.slashes, strict=True):
            # diagonal s meets query p at key p - s: as many pairs as a column at s has; both meet where v + s = p
            crossings = torch.searchsorted(slashes, n - columns) - torch.searchsorted(slashes, n - t - columns)
            total += seen_by(columns, t, n) + seen_by(slashes, t, n) - int(crossings.sum())
        return total / self.heads
