"""Layers whose older tokens lie together: one row of coefficients by token for all heads of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from headwise.cache.levelled import LevelledStore
from headwise.cache.paged import PagedStore
from headwise.cache.projected import ProjectedStore
from headwise.cache.shape import Shape
from headwise.cache.spanned import SpannedStore


class Span:
    """Several layers and the `factor` in which they share their older tokens (xKV, 2503.18893).

    stores: by layer, a levelled store of its own plain tokens and its share of the factor. What the layers hold of a
    token lies side by side as one vector of the factor, whose lanes are batch rows; so tokens move there in all layers
    at once (`demote`), and the layers are copied together (`fork`). A layer on its own is a span of one.
    """

    def __init__(self, plain: Sequence[PagedStore], factor: ProjectedStore) -> None:
        self.plain, self.factor = list(plain), factor
        self.shares: list[SpannedStore] = []
        key = value = 0
        for store in plain:
            shape = replace(store.shape, codecs=factor.shape.codecs)
            keys = slice(key, key + shape.heads * shape.key_width)
            values = slice(value, value + shape.heads * shape.value_width)
            self.shares.append(SpannedStore(shape, factor, (keys, values), first=not self.shares))
            key, value = keys.stop, values.stop
        self.stores = [LevelledStore([*pair]) for pair in zip(self.plain, self.shares, strict=True)]

    def demote(self, wanted: Sequence[torch.Tensor | None]) -> None:
        """Move the plain tokens of all layers that `wanted[i] [n]` puts at level 1, given for the lanes of the last
        layer; None: leave all of a lane. All heads of a row move those of its first."""
        for store in self.stores:
            store.summaries.clear()
        last, share = self.stores[-1], self.shares[-1]
        moving = []  # by row, positions [m]
        for lane in range(0, len(wanted), share.heads):
            due = self.plain[-1].positions(lane)[:0]
            if (levels := wanted[lane]) is not None:
                due = self.plain[-1].positions(lane)[last.split(lane, levels)[-1] >= 1]
            moving.append(due[: share.accepted(len(due), share.lengths[lane])])
        if any(len(positions) for positions in moving):
            self._move(moving)

    def _move(self, moving: list[torch.Tensor]) -> None:
        """Move the tokens of row i at positions moving[i] [m]."""
        counts = [len(positions) for positions in moving]
        padded = _right_aligned(moving, max(counts))
        vectors = []
        for plain, share in zip(self.plain, self.shares, strict=True):
            keys, values, rest = _taken(plain, moving)
            vectors.append(share.as_rows(keys, values, padded))
            plain.keep(rest)
        keys, values = (torch.cat(side, dim=2) for side in zip(*vectors, strict=True))
        self.factor.append(keys, values, padded, counts)

    def fork(self) -> Span:
        """An independent copy of all its layers."""
        return Span([store.fork() for store in self.plain], self.factor.fork())


def factor_shape(shapes: Sequence[Shape], codecs: tuple[str, ...]) -> Shape:
    """The shape of a factor of layers of these shapes."""
    key = sum(shape.heads * shape.key_width for shape in shapes)
    value = sum(shape.heads * shape.value_width for shape in shapes)
    return Shape(shapes[0].rows, key, value, shapes[0].dtype, codecs, rows=shapes[0].rows)


def _taken(store: PagedStore, moving: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Keys [lanes, t, d] and values [lanes, t, e] of the tokens of row i at positions moving[i] [m], 0 before the last
    m of t; and by lane the entries of all others."""
    heads, longest = store.shape.heads, max(len(positions) for positions in moving)
    keys, values, rest = [], [], []
    for row, positions in enumerate(moving):
        gone = torch.isin(store.positions(row * heads), positions)
        held = store.segment(row * heads, (row + 1) * heads)
        keys.append(_right_aligned(list(held.keys[:, gone]), longest))
        values.append(_right_aligned(list(held.values[:, gone]), longest))
        rest += [(~gone).nonzero()[:, 0]] * heads
    return torch.cat(keys), torch.cat(values), rest


def _right_aligned(rows: list[torch.Tensor], longest: int) -> torch.Tensor:
    """Rows [m, ...] of differing lengths as one tensor [rows, longest, ...], 0 before what is shorter."""
    return torch.stack([torch.cat((row.new_zeros(longest - len(row), *row.shape[1:]), row)) for row in rows])
