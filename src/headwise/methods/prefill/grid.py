"""MMInference's grid: tokens of equal place in their frame, found by the stride at which attention comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Composite, Piece, Where, Window
from headwise.knobs import BlockSize, Ge, NonNegative, Positive
from headwise.methods.permuted import permuted
from headwise.methods.prefill import Prefill, by_distance
from headwise.registry import Card, register


@register("prefill", "grid")
@dataclass(frozen=True)
class FrameGrid(Prefill):
    """Finds a stride and a phase in the attention of the chunk's last queries and puts tokens of equal place in their
    frame side by side. In that order, a block of queries reads the blocks that hold keys of its own places or of the
    phase; in the old one, what is near.

    least, most: shortest and longest stride looked for, in tokens. last: queries the estimate is made from.
    first: first tokens that are always read. nearest: latest tokens that are always read, the query included.
    size: tokens per block.
    """

    least: Annotated[int, Ge(2)] = 16
    most: Positive = 1024
    last: Positive = 64
    first: NonNegative = 4
    nearest: Positive = 128
    size: BlockSize = 64

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="MMInference: grid head",
        paper="MMInference: Accelerating Pre-filling for Long-Context VLMs via Modality-Aware Permutation Sparse "
        "Attention, arXiv 2504.16083, section 3.1",
        systems=(243,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets="nothing is dropped, but tokens at other places in their frame are not read from far away",
        deviations="one stride and phase per KV head, those whose lattice holds most attention beyond its share of the "
        "tokens, found anew in each prompt (the released code finds them beforehand, at the strides of the video's "
        "frames); queries of the phase read no more than others (released code: everything); the permuted blocks are "
        "taken out by the plain kernel; the heads at the boundaries of modalities are q_boundary and boundary_2d",
    )

    def conflict(self) -> str | None:
        if self.most < self.least:
            return f"most must be least or more, got least={self.least} and most={self.most}"
        return None

    def where(self, view: View) -> Where:
        """The window and the first tokens, and beside them the permuted blocks."""
        last, t, n = min(self.last, view.queries.shape[2]), view.queries.shape[2], view.count
        columns, along = torch.zeros(2, len(view.heads), n, device=view.positions.device)
        for head in range(len(view.heads)):
            rows = view.subset((head,)).observe(last).mean(1)  # [1, w, n]
            columns[head], along[head] = rows[0].sum(0), by_distance(rows)[0]
        columns[:, : self.first], along[:, : self.nearest] = 0, 0  # read in any case
        near = Window(self.nearest - 1, self.first)
        excess, phases = self._lattices(columns, along)
        if not excess.shape[1]:
            return near
        best = excess.argmax(1, keepdim=True)
        place = torch.arange(n, device=best.device) % (best + self.least)
        far = permuted(place, phases.gather(1, best), t, self.size, near)
        return Composite(tuple(Piece(range(t), range(n), part) for part in (near, far)))

    def _lattices(self, columns: torch.Tensor, along: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For every stride from `least` on, attention on its best columns and its diagonals beyond their share, and
        the phase of those columns: [h, strides] both. columns, along: [h, n]."""
        heads, n = columns.shape
        total = (columns + along).sum(1)
        excess, phases = [], []
        for stride in range(self.least, min(self.most, n - 1) + 1):
            whole = torch.nn.functional.pad(columns, (0, -n % stride)).view(heads, -1, stride).sum(1)
            held, phase = whole.max(1)
            excess.append(held + along[:, ::stride].sum(1) - total / stride)
            phases.append(phase)
        if not excess:
            return columns[:, :0], columns[:, :0].long()
        return torch.stack(excess, 1), torch.stack(phases, 1)

    def plain(self, view: View) -> Where:
        """The same with one softmax row, one lattice and one pair at a time."""
        (heads, group, t, _), n, size = view.queries.shape, view.count, self.size
        seen = torch.zeros(heads, t, n, dtype=torch.bool)
        for h in range(heads):
            columns, along = [0.0] * n, [0.0] * n
            for i in range(max(0, t - self.last), t):
                end = n - t + i + 1
                for g in range(group):
                    row = (view.keys[h, :end].double() @ view.queries[h, g, i].double() * view.scale).softmax(0) / group
                    for j, weight in enumerate(row.tolist()):
                        columns[j] += weight * (j >= self.first)
                        along[end - 1 - j] += weight * (end - 1 - j >= self.nearest)
            total, best = sum(columns) + sum(along), (-float("inf"), 0, 0)
            for stride in range(self.least, min(self.most, n - 1) + 1):
                sums = [sum(columns[phase::stride]) for phase in range(stride)]
                excess = max(sums) + sum(along[::stride]) - total / stride
                best = max(best, (excess, stride, sums.index(max(sums))), key=lambda one: one[0])
            _, stride, phase = best
            for i in range(n - t, n):
                seen[h, i - n + t, [*range(min(self.first, i)), *range(max(0, i + 1 - self.nearest), i + 1)]] = True
            ranked = [i for place in range(stride) for i in range(place, n, stride)]
            asked = [i for i in ranked if i >= n - t]
            for mine in (asked[a : a + size] for a in range(0, t, size)):
                for theirs in (ranked[b : b + size] for b in range(0, len(ranked), size)):
                    low, high = theirs[0] % stride, theirs[-1] % stride
                    if low <= phase <= high or (low <= mine[-1] % stride and mine[0] % stride <= high):
                        for i in mine:
                            seen[h, i - n + t, [j for j in theirs if j <= i]] = True
        return Blocks.from_map(1, seen)
