"""Patterns by modality: what MMInference's heads at the boundaries of text and images share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from itertools import product

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.forms import Where
from headwise.knobs import BlockSize, NonNegative, Positive
from headwise.methods.blocks import Grid, group_sums
from headwise.methods.prefill import Prefill


@dataclass(frozen=True)
class Boundary(Prefill):
    """Base of the patterns by modality. Every kind of mark is a modality; what no mark covers is of kind `text`, and
    where marks overlap the one that starts later counts.

    verticals, slashes: tokens of columns and diagonals that each pattern reads per KV head, in whole blocks, beside the
    first block and the query block's own. last: queries of each modality the estimate is made from. size: tokens per
    block.
    """

    verticals: NonNegative = 1000
    slashes: NonNegative = 2048
    last: Positive = 64
    size: BlockSize = 64

    needs = frozenset({"keys", "queries", "marks"})

    @abstractmethod
    def of_keys(self, kinds: torch.Tensor) -> torch.Tensor:
        """The group of keys that a token of each kind is in, int64 like `kinds`."""

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
                scores = [[0.0] * len(blocks) for _ in range(2)]
                queries = [i for i in range(t) if asking[i] == kind]
                for i, g in product(queries[-self.last :], range(group)):
                    row = (keys[: n - t + i + 1] @ view.queries[h, g, i].double() * view.scale).softmax(0)
                    for j, weight in enumerate(row.tolist()):
                        if groups[j] == to and not forced[i // size][j // size]:
                            scores[0][j // size] += weight
                            scores[1][ends[i // size] - j // size] += weight
                column, diagonal = self._chosen(torch.tensor(scores, dtype=torch.float64)).tolist()
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
