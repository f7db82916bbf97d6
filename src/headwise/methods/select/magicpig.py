"""MagicPIG: keys are drawn by hashes that collide with the query's, and count for one over their probability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from headwise.attention.view import View
from headwise.choose import choose
from headwise.forms import Tokens, Weighted
from headwise.knobs import Ge, Le
from headwise.methods.select import Summarised
from headwise.registry import Card, register


@register("select", "magicpig")
@dataclass(frozen=True)
class MagicPIG(Summarised):
    """budget: share of the stored tokens or most tokens read per step; of more that are drawn, a random part is read
    and counts for more. sinks, recent: tokens always read.

    bits, tables: a key is drawn when its hash of so many bits is the query's in two of so many tables.
    """

    bits: Annotated[int, Ge(1), Le(15)] = 8
    tables: Annotated[int, Ge(2), Le(1024)] = 75

    needs = frozenset({"keys", "queries", "summaries", "memory"})
    weighs = True
    noted = {"centre": "d"}
    card = Card(
        title="MagicPIG: LSH sampling",
        paper="MagicPIG: LSH Sampling for Efficient LLM Generation, arXiv 2410.16179, algorithm 1",
        phase="decode",
        query_aware=True,
        forgets="nothing for good: each step reads a random sample, corrected by its probabilities",
        deviations="collisions are counted key by key, without tables to look up; a sample larger than the budget is "
        "thinned; keys are centred on the mean of those stored at the first new token",
    )

    def remember(self, view: View) -> Mapping[str, Sequence[torch.Tensor]]:
        """The mean key of each head, once."""
        return {} if view.memory.recall("centre") is not None else {"centre": tuple(view.keys.float().mean(1))}

    def _centre(self, view: View) -> torch.Tensor:
        """Mean keys [h, 1, d]."""
        noted = view.memory.recall("centre")
        return torch.stack(noted)[:, None] if noted else view.keys.float().mean(1, keepdim=True)

    def _hashes(self, view: View, x: torch.Tensor) -> torch.Tensor:
        """Signs of random projections of x [h, m, d], as numbers [h, m, tables]."""
        random = torch.Generator().manual_seed(view.seed)
        planes = torch.randn(x.shape[2], self.tables * self.bits, generator=random).to(x.device)
        places = 2 ** torch.arange(self.bits, device=x.device)
        pieces = [(piece @ planes > 0).unflatten(2, (self.tables, self.bits)) for piece in x.split(2048, 1)]
        return torch.cat([(signs * places).sum(-1).to(torch.int16) for signs in pieces], 1)

    def summarise(self, view: View, blocks: torch.Tensor) -> torch.Tensor:
        """Hashes of the centred keys: [h, n, tables]."""
        return self._hashes(view, blocks[:, :, 0].float() - self._centre(view))

    def select(self, view: View) -> Weighted:
        """The tokens drawn for any query, each counted for the queries that drew it, and those always read."""
        asked = self._hashes(view, view.queries.float().flatten(1, 2))
        drawn = torch.stack([(view.summaries == one[:, None]).sum(-1) >= 2 for one in asked.unbind(1)], 1)
        return self._sample(view, drawn)

    def _sample(self, view: View, drawn: torch.Tensor) -> Weighted:
        """By which queries each token was drawn, bool [h, g * t, n]: what the budget leaves of it, with its weights."""
        always, hit = self.protect(view), drawn.any(1)
        luck = torch.rand(view.seen, generator=torch.Generator().manual_seed(view.seed + view.seen))
        order = luck.to(drawn.device)[view.positions.long()].masked_fill(~hit, -torch.inf)
        wanted = (hit | always).sum(1)
        read = choose(order, wanted.clamp(max=self.amount.tokens_of(view.count)), always)
        keys, centre, biases = view.keys, self._centre(view), []
        for head, entries in enumerate(read):
            sure, by = always[head, entries], drawn[head][:, entries]
            queries = view.queries[head].float().flatten(0, 1)
            chance = self._chance(queries, keys[head, entries].float() - centre[head])
            left = float((~sure).sum()) / max(1.0, float((hit[head] & ~always[head]).sum()))  # of the sample
            bias = -(chance.log() + math.log(max(left, 1e-9)))
            bias = bias.masked_fill(~by, -torch.inf).masked_fill(sure, 0.0)
            biases.append(bias.unflatten(0, view.queries.shape[1:3]))
        return Weighted(Tokens(read), tuple(biases))

    def _chance(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Probability [r, m] that queries [r, d] draw keys [m, d]: two or more tables agree in all bits."""
        cosine = torch.nn.functional.normalize(queries, dim=-1) @ torch.nn.functional.normalize(keys, dim=-1).T
        one = (1 - cosine.clamp(-1, 1).double().acos() / math.pi) ** self.bits
        none, single = (1 - one) ** self.tables, self.tables * one * (1 - one) ** (self.tables - 1)
        return (1 - none - single).clamp(min=1e-12).float()

    def plain(self, view: View) -> Weighted:
        """The same with one key, one query and one table at a time."""
        heads, centre = len(view.heads), self._centre(view)
        asked = self._hashes(view, view.queries.float().flatten(1, 2)).tolist()
        kept = self._hashes(view, view.keys.float() - centre).tolist()
        drawn = torch.zeros(heads, len(asked[0]), view.count, dtype=torch.bool)
        for h in range(heads):
            for r, query in enumerate(asked[h]):
                for j, key in enumerate(kept[h]):
                    drawn[h, r, j] = sum(a == b for a, b in zip(query, key, strict=True)) >= 2
        return self._sample(view, drawn)
