"""Which stored keys each query sees.

The t queries are the last t of the n tokens: query i sees key j only if j <= n - t + i. Every form but `Full` is causal
in this sense. Indices are storage indices 0..n-1, not positions. One form is one rule for all heads, or lists per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.ragged import ascending, below, bounds, marks, seen_by

BLOCK_ELEMENTS = 1 << 21  # most elements of a mask or score block made at once, so that no form ever needs n x n
MOST = 1 << 62  # tokens: with what is added to it, it fits into 64 bits


class Where:
    """Base of all forms. A subclass gives `rows`, and may count its pairs in closed form."""

    @property
    def heads(self) -> int | None:
        """KV heads that the form has lists for; None when one rule serves all."""
        return None

    @property
    def causal(self) -> bool:
        """Whether a query is kept from the keys after it."""
        return True

    def check(self, t: int, n: int) -> None:
        """Raise HeadwiseError unless the form fits t queries over n keys."""
        if not 0 <= t <= n and self.causal:
            raise ShapeError(
                f"{type(self).__name__} takes the t={t} queries as the last of the n={n} tokens; "
                "store the new keys first, or use Full() for a piece of history"
            )

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        """Rows start..stop-1 of the t queries, drawn: bool `[h or 1, stop - start, n]`, True where visible."""
        raise NotImplementedError

    def dense(self, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        """The whole form, drawn: bool `[h or 1, t, n]`. For tests and pictures; the mask is t x n."""
        return self.rows(0, t, t, n, device)

    def visible_pairs(self, t: int, n: int) -> float:
        """Visible (query, key) pairs, mean over heads; here by drawing blocks of rows."""
        self.check(t, n)
        step = max(1, BLOCK_ELEMENTS // max(1, n * (self.heads or 1)))
        blocks = (self.rows(start, min(start + step, t), t, n) for start in range(0, t, step))
        return sum(float(block.sum()) / block.shape[0] for block in blocks)

    def density(self, t: int, n: int) -> float:
        """Visible pairs over those of a dense call: the causal ones, or all t * n for `Full`. 1 if there are none."""
        possible = causal_pairs(t, n) if self.causal else t * n
        visible = self.visible_pairs(t, n)
        return visible / possible if possible else 1.0

    def __or__(self, other: Where) -> Union:
        return Union((self, other))


def causal_pairs(t: int, n: int) -> int:
    """Pairs that t causal queries at the end of n tokens see."""
    return t * (n - t) + t * (t + 1) // 2


def _positions(start: int, stop: int, t: int, n: int, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """Storage index of queries start..stop-1 as a column `[rows, 1]`, and of the keys as a row `[1, n]`."""
    queries = torch.arange(n - t + start, n - t + stop, device=device)
    return queries[:, None], torch.arange(n, device=device)[None]


@dataclass(frozen=True)
class Full(Where):
    """Every query sees every key: for pieces of history, where all n keys come before all t queries."""

    @property
    def causal(self) -> bool:
        return False

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        return torch.ones(1, stop - start, n, dtype=torch.bool, device=device)

    def visible_pairs(self, t: int, n: int) -> float:
        return float(t * n)


@dataclass(frozen=True)
class Causal(Where):
    """Every query sees itself and all that came before."""

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        queries, keys = _positions(start, stop, t, n, device)
        return (keys <= queries)[None]

    def visible_pairs(self, t: int, n: int) -> float:
        self.check(t, n)
        return float(causal_pairs(t, n))


@dataclass(frozen=True)
class Window(Where):
    """The `left` keys before each query and itself, and the first `sinks` keys (StreamingLLM, arXiv 2309.17453)."""

    left: int
    sinks: int = 0

    def __post_init__(self) -> None:
        for name, value in (("left", self.left), ("sinks", self.sinks)):
            if not isinstance(value, int) or value < 0:
                raise HeadwiseError(f"Window({name}={value}): {name} counts tokens; give a whole number of 0 or more")
            object.__setattr__(self, name, min(value, MOST))  # more than any sequence has means all

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        queries, keys = _positions(start, stop, t, n, device)
        near = (queries - keys <= self.left) | (keys < self.sinks)
        return (near & (keys <= queries))[None]

    def visible_pairs(self, t: int, n: int) -> float:
        self.check(t, n)
        queries = torch.arange(n - t, n)
        near = (queries + 1).clamp(max=self.left + 1)
        return float((near + (queries - self.left).clamp(min=0, max=self.sinks)).sum())


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
        queries, keys = _positions(start, stop, t, n, device)
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

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        below("Tokens", self.highest, n, "stored tokens")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        device = device or self.indices[0].device
        queries, keys = _positions(start, stop, t, n, device)
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

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        below("VerticalSlash.verticals", self.highest[0], n, "stored tokens")
        below("VerticalSlash.slashes", self.highest[1], n, "distances")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        device = device or self.verticals[0].device
        queries, keys = _positions(start, stop, t, n, device)
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


@dataclass(frozen=True, eq=False)
class Until(Where):
    """Per head, each key is seen up to the query with storage index `last [h, n]`, itself included (int64)."""

    last: Tensor

    def __post_init__(self) -> None:
        if self.last.dim() != 2 or self.last.dtype != torch.int64:
            raise ShapeError(f"Until takes int64 [h, n], got {self.last.dtype} {list(self.last.shape)}")

    @property
    def heads(self) -> int:
        return self.last.shape[0]

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        if self.last.shape[1] != n:
            raise ShapeError(f"Until tells of {self.last.shape[1]} keys, but there are {n}; give one number for each")

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        device = device or self.last.device
        queries, keys = _positions(start, stop, t, n, device)
        return (queries <= self.last.to(device)[:, None]) & (keys <= queries)


@dataclass(frozen=True, eq=False)
class Union(Where):
    """A pair is visible if any part shows it. `a | b` builds one."""

    parts: tuple[Where, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise HeadwiseError("Union() of nothing shows nothing; give it at least one form")
        flat = [p for part in self.parts for p in (part.parts if isinstance(part, Union) else (part,))]
        counts = sorted({part.heads for part in flat if part.heads is not None})
        if len(counts) > 1:
            raise ShapeError(f"Union: its parts have lists for different numbers of heads: {counts}")
        object.__setattr__(self, "parts", tuple(flat))

    @property
    def heads(self) -> int | None:
        return next((part.heads for part in self.parts if part.heads is not None), None)

    @property
    def causal(self) -> bool:
        return all(part.causal for part in self.parts)

    def check(self, t: int, n: int) -> None:
        for part in self.parts:
            part.check(t, n)

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        drawn = [part.rows(start, stop, t, n, device) for part in self.parts]
        seen = drawn[0]
        for other in drawn[1:]:
            seen = seen | other
        return seen
