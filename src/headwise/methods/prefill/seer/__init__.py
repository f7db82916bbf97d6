"""SeerAttention: a small trained gate on pooled queries and keys predicts which blocks attention would weigh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Where
from headwise.knobs import BlockSize, Share
from headwise.methods.blocks import Grid, block_means, group_peaks
from headwise.methods.prefill import Prefill
from headwise.registry import CalibrationTensor, Card, register


@register("prefill", "seer")
@dataclass(frozen=True)
class Seer(Prefill):
    """threshold: least share of a block of queries' gate, which sums to 1, for which a block is read; 0 reads all.

    size: tokens per block, those the gate was trained with.
    """

    threshold: Share = 5e-4
    size: BlockSize = 64

    needs = frozenset({"keys", "queries", "rope", "calibration"})
    calibrates = {
        "query": CalibrationTensor("g d d", "the gate's projection of mean queries", "seer"),
        "key": CalibrationTensor("3d d", "the gate's projection of greatest, least and mean keys", "seer"),
    }
    card = Card(
        title="SeerAttention",
        paper="SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs, arXiv 2410.13276, section 3",
        systems=(28,),
        phase="prefill",
        query_aware=True,
        calibrated=True,
        chunking="approximate",
        forgets="nothing is dropped, but blocks of the prompt that the gate gives little are not read",
        deviations="without a calibration (`query` and `key`, the gate's two projections) the gate is that of mean "
        "queries and mean keys, rotated to the start of their block; the gate's width is that of a head; a KV head "
        "reads what the gate of any query head of its group wants; the first block and the query block's own are "
        "always read",
    )

    def where(self, view: View) -> Where:
        """Blocks whose gate reaches the threshold."""
        grid = Grid.of(self.size, view.queries.shape[2], view.count, view.positions.device)
        queries, keys = pooled(view, self.size)
        gate = gate_scores(view, self.size, queries, keys, {**untrained(queries), **view.calibration}).softmax(-1)
        return grid.blocks((gate >= self.threshold).any(1) | grid.forced())

    def plain(self, view: View) -> Where:
        """The same one block of queries at a time."""
        (heads, group, t, width), n, size = view.queries.shape, view.count, self.size
        seen = torch.zeros(heads, -(-t // size), -(-n // size), dtype=torch.bool)

        def unturned(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return (x.float() if view.rope is None else view.rope.unrotate(x.float(), positions)).double()

        def turned(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            return x if view.rope is None else view.rope.rotate(x.float(), position).double()

        for h in range(heads):
            keys = []
            for block, places in zip(view.keys[h].split(size), view.positions[h].split(size), strict=True):
                own = unturned(block, places)
                pool = torch.cat((own.amax(0), own.amin(0), own.mean(0)))
                gate = pool @ view.calibration["key"][h].double() if "key" in view.calibration else own.mean(0)
                keys.append(turned(gate, places[0]))
            for i in range(seen.shape[1]):
                begin, past = n - t + i * size, (n - t + min(t, (i + 1) * size) - 1) // size + 1
                seen[h, i, [0, *range(begin // size, past)]] = True
                places = view.query_positions[i * size : (i + 1) * size]
                for g in range(group):
                    query = unturned(view.queries[h, g, i * size : (i + 1) * size], places).mean(0)
                    if "query" in view.calibration:
                        query = query @ view.calibration["query"][h, g].double()
                    scores = torch.stack([turned(query, places[0]) @ key for key in keys[:past]]) * width**-0.5
                    seen[h, i, :past] |= scores.softmax(0) >= self.threshold
        return Blocks.from_map(size, seen)


def pooled(view: View, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the gate sees of each block, before rotation: mean queries [h, g, query blocks, d], and greatest, least and
    mean keys side by side [h, key blocks, 3 d]."""
    keys, queries = view.keys.float(), view.queries.float()
    if view.rope is not None:
        keys, queries = view.rope.unrotate(keys, view.positions), view.rope.unrotate(queries, view.query_positions)
    means = block_means(queries.flatten(0, 1), size).unflatten(0, queries.shape[:2])
    return means, torch.cat((group_peaks(keys, size), -group_peaks(-keys, size), block_means(keys, size)), -1)


def gate_scores(
    view: View, size: int, queries: torch.Tensor, keys: torch.Tensor, weights: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The gate before its softmax, [h, g, query blocks, key blocks]; -inf in the future.

    weights: `query` [h, g, d, d] and `key` [h, 3 d, d] (Q avg, K max, min and avg of the paper's table 4).
    """
    queries, keys = queries @ weights["query"].float(), keys @ weights["key"].float()
    if view.rope is not None:
        queries = view.rope.rotate(queries, view.query_positions[::size])
        keys = view.rope.rotate(keys, view.positions[:, ::size])
    scores = queries @ keys[:, None].mT * queries.shape[-1] ** -0.5
    grid = Grid.of(size, view.query_positions.shape[0], view.count, view.positions.device)
    return scores.masked_fill(~grid.past, -torch.inf)


def untrained(queries: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights that leave queries like `queries` [h, g, m, d] as they are and take mean keys: where training starts."""
    heads, group, _, width = queries.shape
    same = torch.eye(width, device=queries.device)
    mean = torch.cat((torch.zeros(2 * width, width, device=queries.device), same))
    return {"query": same.expand(heads, group, -1, -1), "key": mean.expand(heads, -1, -1)}
