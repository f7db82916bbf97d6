"""What any query of a second reading looks at stays, each head's own, helped along by what the other heads look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.byproducts import column_peaks
from headwise.attention.view import View
from headwise.forms import Causal
from headwise.methods.rehearsal import Rehearsal
from headwise.methods.reread import LEAST, Reread
from headwise.registry import Card, register


@register("evict", "kv_compose")
@dataclass(frozen=True)
class KVCompose(Reread):
    """When a prompt has been read, the model reads it once more, after all of it. A token is worth the most attention
    that a query of that gives it, averaged over the query group, and as much again as it is worth to the layer's heads
    on average. No question is looked at, so the cache serves any.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    piece: tokens that are read again at once, and judged by each other's queries alone.
    """

    card = Card(
        title="KVCompose",
        paper="KVCompose: Efficient Structured KV Cache Compression with Composite Tokens, arXiv 2509.05165",
        frees_memory=True,
        chunking="exact",
        forgets="prompt tokens that the model does not look at when it reads the prompt again",
        deviations="a prompt longer than `piece` is read again in pieces, where the paper reads it whole, so that not "
        "twice as many positions are needed; every layer keeps as many tokens, where the paper lets layers compete (by "
        "its counts, every layer keeps what NVIDIA's kvpress keeps; with `| ada(0)` a layer's heads compete, as in its "
        "unstructured form); heads that hold different numbers of tokens (under ada) take no mean of each other; what "
        "the model writes is not read again and stays as the latest tokens; tokens are not weighed by their values, "
        "which kvpress can; holds all of the prompt until it has been read again",
    )

    @property
    def rehearsal(self) -> Rehearsal:
        """The prompt again, as it is."""
        return Rehearsal(self.piece)

    def rehearse(self, view: View, told: range) -> torch.Tensor:
        """The score of each token of `told`, above 0: [h, told, 1]."""
        first = int((view.positions[0] < told.start).sum())
        peaks = column_peaks(view.queries, view.keys, Causal(), view.scoring)[..., first : first + len(told)]
        own = peaks.mean(1)
        return (own + own.mean(0)).clamp(min=LEAST)[..., None]

    def plain_rehearsal(self, view: View, told: range) -> torch.Tensor:
        """`rehearse`, one query and one softmax at a time."""
        heads, group, count, _ = view.queries.shape
        own = [[0.0] * len(told) for _ in range(heads)]
        for h in range(heads):
            places, keys = view.positions[h].tolist(), view.keys[h].double()
            for g in range(group):
                best = [0.0] * len(told)
                for i in range(count):
                    seen = view.count - count + i + 1  # all that is stored, and what was read up to this query
                    weights = (keys[:seen] @ view.queries[h, g, i].double() * view.scale).softmax(0).tolist()
                    for at, weight in zip(places[: view.count - count], weights, strict=False):
                        if at in told:
                            best[at - told.start] = max(best[at - told.start], weight)
                own[h] = [old + new / group for old, new in zip(own[h], best, strict=True)]
        means = [sum(column) / heads for column in zip(*own, strict=True)]
        return torch.tensor([[[max(x + mean, LEAST)] for x, mean in zip(row, means, strict=True)] for row in own])
