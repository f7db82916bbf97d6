"""The last queries vote: what the end of the prompt attends to is what the answer will need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool1d

from headwise.attention.view import View
from headwise.knobs import Odd, Positive
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "snapkv")
@dataclass(frozen=True)
class SnapKV(Evict):
    """The attention of the last `window` queries, smoothed along the tokens, averaged over the query group.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    window: last queries that vote, in tokens; their own tokens stay. In a prompt no longer than that all vote, and the
    latest tokens stay. kernel: tokens that the smoothing averages, odd.
    """

    window: Positive = 32
    kernel: Odd = 5

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="SnapKV",
        paper="SnapKV: LLM Knows What You are Looking for Before Generation, arXiv 2404.14469",
        systems=(166,),
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="prompt tokens that the last queries did not attend to; a later question may need them",
        deviations="sinks are protected; one choice per KV head (the mean over its queries) where the paper's code "
        "repeats keys and chooses per query head; mean pooling, as in the paper's listing (its benchmarks used maximum "
        "pooling with kernel 7); after earlier evictions neighbours are neighbours in the cache, not in the text",
    )

    @property
    def last_queries(self) -> int:
        """The window, so that votes span decode steps."""
        return self.window

    def score(self, view: View) -> torch.Tensor:
        """Smoothed votes [h, n]; +inf for the voters' own tokens."""
        window = min(self.window, view.queries.shape[2])
        voters = view.positions >= view.seen - window
        # Head by head: the window's attention matrix over all heads at once would be the largest tensor around.
        votes = torch.cat([view.subset((i,)).observe(window).mean(dim=(1, 2)) for i in range(len(view.heads))])
        mean = votes.masked_fill(voters, 0)
        smooth = avg_pool1d(mean[:, None], self.kernel, stride=1, padding=self.kernel // 2)[:, 0]
        return smooth.masked_fill(voters, torch.inf)

    def plain(self, view: View) -> torch.Tensor:
        """The same from the paper's equations: softmax rows, column sums, a sliding mean."""
        heads, group, last, _ = view.queries.shape
        window = min(self.window, last)
        rows = []
        for h in range(heads):
            positions = view.positions[h].tolist()
            votes = [0.0] * len(positions)
            for g in range(group):
                for i in range(last - window, last):
                    logits = (view.keys[h].double() @ view.queries[h, g, i].double()) * view.scale
                    seen = view.positions[h] <= view.query_positions[i]
                    row = logits.masked_fill(~seen, -torch.inf).softmax(0).tolist()
                    votes = [vote + p / (group * window) for vote, p in zip(votes, row, strict=True)]
            voter = [p >= view.seen - window for p in positions]
            votes = [0.0 if own else vote for own, vote in zip(voter, votes, strict=True)]
            reach = self.kernel // 2
            smooth = [sum(votes[max(0, j - reach) : j + reach + 1]) / self.kernel for j in range(len(votes))]
            rows.append([float("inf") if own else vote for own, vote in zip(voter, smooth, strict=True)])
        return torch.tensor(rows)
