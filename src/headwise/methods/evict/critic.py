"""A mix of three reasons to keep a token: it is attended to, by undecided queries, and the output hangs on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import Positive, Weight
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "critic")
@dataclass(frozen=True)
class Critic(Evict):
    """Adds attention, entropy and gradient importance, each as a share of the head's largest, by weights.

    Attention is the mean of the last `window` queries' probabilities p; entropy importance the mean of -p log p;
    gradient importance the mean of |p (v - out)|, the derivative of a query's output by the token's score.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    window: last queries that are looked at, in tokens. attention, entropy, gradient: weights, 0 or more.
    """

    window: Positive = 32
    attention: Weight = 1.0
    entropy: Weight = 1.0
    gradient: Weight = 1.0

    needs = frozenset({"keys", "values", "queries"})
    card = Card(
        title="CRITIC",
        paper="Scaling Test-Time Inference with Policy-Optimized, Dynamic Retrieval-Augmented Generation via KV "
        "Caching and Decoding, arXiv 2504.01281, its cache part",
        systems=(160,),
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="tokens that the last queries neither attended to nor depend on; a later question may need them",
        deviations="one of the paper's three parts: ATLAS, which decides when to retrieve, and PORAG, which trains the "
        "generator, are not here; the paper's mixing formula could not be established: here a weighted sum, and the "
        "gradient is that of the head's output, not of a loss",
    )

    def conflict(self) -> str | None:
        if not self.attention + self.entropy + self.gradient:
            return "attention, entropy and gradient are all 0, so that nothing counts; give one of them a weight"
        return None

    @property
    def last_queries(self) -> int:
        """The window, so that it spans decode steps."""
        return self.window

    def score(self, view: View) -> torch.Tensor:
        """The weighted sum [h, n], each part at most 1."""
        return torch.cat([self._score(view.subset((head,))) for head in range(len(view.heads))])

    def _score(self, view: View) -> torch.Tensor:
        p = view.observe(min(self.window, view.queries.shape[2])).flatten(1, 2)  # [1, g * w, n]
        values = view.values.to(p.dtype)
        out = p @ values
        # |v - out|^2 by its parts: the differences themselves would be [w, n, e].
        apart = values.square().sum(-1)[:, None] - 2 * out @ values.mT + out.square().sum(-1, keepdim=True)
        gradient = p * apart.clamp(min=0).sqrt()
        parts = torch.stack((p.mean(1), torch.special.entr(p).mean(1), gradient.mean(1)))
        weights = torch.tensor((self.attention, self.entropy, self.gradient), device=p.device)[:, None, None]
        return (weights * parts / parts.amax(-1, keepdim=True).clamp(min=1e-20)).sum(0)

    def plain(self, view: View) -> torch.Tensor:
        """The same, query by query."""
        heads, group, last, _ = view.queries.shape
        window, rows = min(self.window, last), []
        for h in range(heads):
            parts, values = [torch.zeros(view.count).double() for _ in range(3)], view.values[h].double()
            for g in range(group):
                for i in range(last - window, last):
                    logits = (view.keys[h].double() @ view.queries[h, g, i].double()) * view.scale
                    row = logits.masked_fill(view.positions[h] > view.query_positions[i], -torch.inf).softmax(0)
                    parts[0] += row
                    parts[1] -= row * row.clamp(min=1e-300).log()
                    parts[2] += row * torch.stack([(value - row @ values).norm() for value in values])
            weights = (self.attention, self.entropy, self.gradient)
            shares = [w * x / max(float(x.max()), 1e-20) for w, x in zip(weights, parts, strict=True)]
            rows.append(torch.stack(shares).sum(0))
        return torch.stack(rows)
