"""The newest query decides: tokens it attends to least leave first, the same ones in every head of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "tova")
@dataclass(frozen=True)
class Tova(Evict):
    """The attention of the last query, averaged over the heads that follow the recipe in a layer.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept; the paper keeps none
    by rule and finds that the first tokens stay by themselves.
    """

    sinks: NonNegative = 0
    recent: NonNegative = 1

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="TOVA (token omission via attention)",
        paper="Transformers are Multi-State RNNs, arXiv 2401.06104",
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="tokens that the newest query did not attend to; a later question may need them",
        deviations="evicts at the end of a chunk and every so many decode steps, not at every token",
    )

    def score(self, view: View) -> torch.Tensor:
        """Mean attention [h, n] of the last query, equal for all heads."""
        ((_, seen),) = view.group_means(1)
        return seen.mean(dim=(0, 1)).expand(len(view.heads), -1)

    def plain(self, view: View) -> torch.Tensor:
        """The same, head by head: exponentials over their sum."""
        heads, group, last, _ = view.queries.shape
        total = torch.zeros(view.count, dtype=torch.float64)
        for h in range(heads):
            for g in range(group):
                logits = [float(k @ view.queries[h, g, last - 1].double()) * view.scale for k in view.keys[h].double()]
                top = max(logits)
                weights = torch.tensor([math.exp(x - top) for x in logits], dtype=torch.float64)
                total += weights / weights.sum() / (heads * group)
        return total.expand(heads, -1)
