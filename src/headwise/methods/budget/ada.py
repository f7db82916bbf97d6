"""Heads compete: a layer's tokens go to the heads whose scores are worth the most, with a floor for every head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.choose import choose
from headwise.knobs import Share
from headwise.methods.budget import Budget
from headwise.registry import Card, register


@register("budget", "ada")
@dataclass(frozen=True)
class Ada(Budget):
    """Counts are how many of a layer's `h * count` best entries, over all heads together, fall to each head.

    Needs scores that compare across heads (attention does, a position does not).
    floor: share (0 to 1) of the mean count that every head keeps whatever the others score.
    """

    floor: Share = 0.2

    card = Card(
        title="Ada-KV",
        paper="Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation, arXiv 2407.11550",
        frees_memory=True,
        chunking="approximate",
        forgets="more in heads that spread their attention thin",
        deviations="the safeguard is a floor taken before heads compete, as in NVIDIA's kvpress, not the paper's mean "
        "of the competitive and the uniform count; protected tokens count towards a head's part",
    )

    def allot(self, scores: torch.Tensor, protect: torch.Tensor, count: int) -> torch.Tensor:
        """Counts [h] that sum to `h * count` (to all entries held, or all protected, where that is impossible)."""
        held = protect | ~scores.isneginf()
        safe = protect.clone()
        for head, best in enumerate(choose(scores, int(self.floor * count), protect)):
            safe[head, best] = True
        safe &= held
        total = min(count * scores.shape[0], int(held.sum()))
        if int(safe.sum()) > total:  # protected tokens leave no room for floors
            safe = protect
        # Token by token, so that ties between heads go to later tokens and not to later heads.
        winners = choose(scores.T.reshape(1, -1), total, safe.T.reshape(1, -1))[0]
        return torch.bincount(winners % scores.shape[0], minlength=scores.shape[0]).cpu()

    def plain(self, scores: torch.Tensor, protect: torch.Tensor, count: int, layer: int, layers: int) -> torch.Tensor:
        """The same by ranking Python lists."""
        entries: list[tuple[bool, bool, float, int, int]] = []
        for head, (row, kept) in enumerate(zip(scores.tolist(), protect.tolist(), strict=True)):
            ranked = sorted(zip(kept, row, range(len(row)), strict=True), reverse=True)
            floor = max(int(self.floor * count), sum(kept))
            held = [(rank, *entry) for rank, entry in enumerate(ranked) if entry[0] or entry[1] > float("-inf")]
            entries += [(kept, rank < floor, score, j, head) for rank, kept, score, j in held]
        total = max(min(count * len(scores), len(entries)), sum(entry[0] for entry in entries))
        if sum(entry[1] for entry in entries) > total:
            entries = [(entry[0], False, *entry[2:]) for entry in entries]
        winners = sorted(entries, reverse=True)[:total]
        return torch.tensor([sum(entry[4] == head for entry in winners) for head in range(len(scores))])
