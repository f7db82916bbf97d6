"""What the next stretch of text does not foretell stays: keys and values that vary beyond its range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import BlockSize
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "lag_kv")
@dataclass(frozen=True)
class LagKV(Evict):
    """The stored tokens after the sinks are cut into parts of `lag`; each part is judged by the one that follows it.

    Every channel of a key is scaled by the range that the next part's keys have in it; what tells is how much a token's
    channels then differ from each other, and the same of values. Every part keeps its own best tokens, the same number
    of each; the last whole part and what comes after it have no next one and stay.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    lag: tokens of a part.
    """

    lag: BlockSize = 128

    needs = frozenset({"keys", "values"})
    card = Card(
        title="LagKV",
        paper="LagKV: Lag-Relative Information of the KV Cache Tells Which Tokens Are Important, arXiv 2504.04704",
        frees_memory=True,
        chunking="approximate",
        forgets="in every stretch of text the tokens whose keys and values look like those of the next stretch",
        deviations="as NVIDIA's kvpress has it: once for a whole prompt, the same number of tokens from every part; "
        "below sinks + 2 lag tokens the latest stay; after earlier evictions parts are of what is stored; "
        "94 % of the kept tokens are kvpress's, 54 % in the head that differs most, measured before equals went to the "
        "later token",
    )

    def score(self, view: View) -> torch.Tensor:
        """The rank [h, n] of each token in its part, over the part's tokens; 1 for sinks and for the last parts."""
        heads, n = view.positions.shape
        parts = (n - self.sinks) // self.lag
        missing = 0 * (view.keys.double().sum(-1) + view.values.double().sum(-1))  # NaN where a row holds one
        if parts < 2:
            return view.positions.double() / view.seen + missing
        judged = slice(self.sinks, self.sinks + (parts - 1) * self.lag)
        told = torch.zeros(heads, parts - 1, self.lag, device=view.positions.device)
        for rows in (view.keys, view.values):
            told += self._spread(rows[:, self.sinks : self.sinks + parts * self.lag].float()).softmax(-1) / 2
        earlier = torch.ones(self.lag, self.lag, dtype=torch.bool, device=told.device).tril(-1)
        ranks = torch.stack([_ranks(one, earlier) for one in told])
        score = torch.ones(heads, n, device=told.device)
        score[:, judged] = ranks.flatten(1) / self.lag
        return score + missing

    def _spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Of `rows [h, m, c]`, m whole parts: the standard deviation over channels [h, parts - 1, lag], each scaled by
        the range of the part that follows."""
        parts = rows.unflatten(1, (-1, self.lag))
        low, high = parts[:, 1:].amin(2, keepdim=True), parts[:, 1:].amax(2, keepdim=True)
        return ((parts[:, :-1] - low) / (high - low).clamp(min=1e-12)).std(-1)

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token."""
        parts = (view.count - self.sinks) // self.lag
        if parts < 2:
            return torch.tensor([[p / view.seen for p in row] for row in view.positions.tolist()], dtype=torch.float64)
        score = torch.ones(view.positions.shape, dtype=torch.float64)
        for head in range(len(view.heads)):
            for part in range(parts - 1):
                start = self.sinks + part * self.lag
                told = [0.0] * self.lag
                for rows in (view.keys[head].double().tolist(), view.values[head].double().tolist()):
                    spreads = [_deviation(row, rows[start + self.lag : start + 2 * self.lag])
                               for row in rows[start : start + self.lag]]  # fmt: skip
                    total = sum(math.exp(x) for x in spreads)
                    told = [old + math.exp(x) / total / 2 for old, x in zip(told, spreads, strict=True)]
                for j, own in enumerate(told):
                    below = sum(own > other or (own == other and i < j) for i, other in enumerate(told))
                    score[head, start + j] = below / self.lag
        return score


def _ranks(told: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """Of `told [parts, lag]`: how many tokens of its part each one beats, of equals those that come `earlier`."""
    own, others = told[..., None], told[..., None, :]
    return ((own > others) | ((own == others) & earlier)).sum(-1)


def _deviation(row: list[float], following: list[list[float]]) -> float:
    """The standard deviation of a row's channels, each scaled by its range in the rows that follow."""
    ranges = [(min(channel), max(channel)) for channel in zip(*following, strict=True)]
    scaled = [(x - low) / max(high - low, 1e-12) for x, (low, high) in zip(row, ranges, strict=True)]
    mean = sum(scaled) / len(scaled)
    return math.sqrt(sum((x - mean) ** 2 for x in scaled) / (len(scaled) - 1))
