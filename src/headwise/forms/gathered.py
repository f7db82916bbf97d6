"""Blocks of queries that read listed blocks of keys, both cut after they were put in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.lowered import Lowered
from headwise.forms.where import Where, Window, positions


@dataclass(frozen=True)
class Taken:
    """Some query blocks of one head, taken out: rows `[blocks, r]`, numbers of queries; keys `[blocks, m]`, stored
    entries; visible `[blocks, r, m]`. A short block is filled up with its last query."""

    rows: Tensor
    keys: Tensor
    visible: Tensor


@dataclass(frozen=True, eq=False)
class Gathered(Where):
    """Per head, queries and keys in an order of their own, cut into blocks; each query block reads the key blocks that
    it lists. A query sees no key that is stored after it, and none that `hidden` shows, which another call reads.

    queries: int64 [h, t], numbers of all queries, in blocks of `size`. keys: int64 [h, n], all stored entries, in
    blocks of `width`. columns: int64 [h, query blocks, m], the key blocks of each, each once, -1 for none.
    """

    queries: Tensor
    keys: Tensor
    columns: Tensor
    size: int
    width: int
    hidden: Window | None = None

    def __post_init__(self) -> None:
        queries, keys, columns = self.queries, self.keys, self.columns
        if self.size < 1 or self.width < 1:
            raise HeadwiseError(f"Gathered(size={self.size}, width={self.width}): a block holds 1 token or more")
        blocks = -(-queries.shape[-1] // self.size)
        fit = queries.dim() == keys.dim() == 2 and columns.dim() == 3 and columns.shape[:2] == (len(keys), blocks)
        if not fit or len(queries) != len(keys) or {queries.dtype, keys.dtype, columns.dtype} != {torch.int64}:
            raise ShapeError(
                f"Gathered needs int64 queries [h, t], keys [h, n] and columns [h, {blocks}, m], got "
                f"{list(queries.shape)}, {list(keys.shape)} and {list(columns.shape)}"
            )

    @staticmethod
    def listed(map: Tensor) -> Tensor:
        """The columns of a bool map [..., query blocks, key blocks]: [..., query blocks, m]."""
        most = int(map.sum(-1).max())
        order = map.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :most]
        return order.masked_fill(~map.gather(-1, order), -1)

    @staticmethod
    def joined(parts: Sequence[Tensor]) -> Tensor:
        """Columns [..., m] of different m, filled up and put under each other."""
        most = max(part.shape[-1] for part in parts)
        return torch.cat([pad(part, (0, most - part.shape[-1]), value=-1) for part in parts])

    @property
    def heads(self) -> int:
        return len(self.keys)

    @property
    def lowered(self) -> Lowered:
        return self

    @property
    def blocks(self) -> float:
        """Pairs of blocks that are computed, mean over heads."""
        return float((self.columns >= 0).sum()) / self.heads

    def check(self, t: int, n: int) -> None:
        super().check(t, n)
        for what, order, count in (("queries", self.queries, t), ("keys", self.keys, n)):
            all_of_them = torch.arange(count, device=order.device)
            if order.shape[1] != count or not bool((order.sort(1).values == all_of_them).all()):
                raise ShapeError(f"Gathered: its {what} must be an order of {count}, each once")
        if self.columns.numel() and int(self.columns.max()) >= -(-n // self.width):
            raise HeadwiseError(f"Gathered: there is no block {int(self.columns.max())} of {n} keys by {self.width}")

    def taken(self, head: int, t: int, n: int, most: int) -> Iterator[Taken]:
        """The blocks of one head, so many at a time that `visible` has about `most` entries."""
        order, listed = self.keys[head], self.columns[head]
        place = torch.arange(len(listed) * self.size, device=order.device).clamp(max=t - 1)
        rows = self.queries[head][place].view(-1, self.size)
        step = max(1, most // max(1, self.size * self.width * listed.shape[1]))
        for start in range(0, len(listed), step):
            own, columns = rows[start : start + step], listed[start : start + step]
            columns = columns[:, (columns >= 0).any(0)]
            cell = (columns[..., None] * self.width + torch.arange(self.width, device=order.device)).flatten(1)
            real = (columns >= 0).repeat_interleave(self.width, 1) & (cell < n)
            keys = order[cell.clamp(0, n - 1)]
            distance = (n - t + own)[..., None] - keys[:, None]
            visible = real[:, None] & (distance >= 0)
            if self.hidden is not None:
                visible &= (distance > self.hidden.left) & (keys >= self.hidden.sinks)[:, None]
            yield Taken(own, keys, visible)

    def rows(self, start: int, stop: int, t: int, n: int, device: torch.device | str | None = None) -> Tensor:
        self.check(t, n)
        device = device or self.keys.device
        queries, stored = positions(start, stop, t, n, device)
        drawn = []
        for order, asked, columns in zip(self.keys, self.queries, self.columns, strict=True):
            block = asked.argsort()[start:stop] // self.size
            listed = columns.new_zeros(len(columns), -(-n // self.width) + 1).scatter_(1, columns + 1, 1)[:, 1:] > 0
            drawn.append(listed[block][:, order.argsort() // self.width])
        seen = torch.stack(drawn).to(device) & (stored <= queries)
        return seen if self.hidden is None else seen & ~self.hidden.rows(start, stop, t, n, device)
