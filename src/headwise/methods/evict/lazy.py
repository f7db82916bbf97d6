"""Tokens come back into attention after a while: one is given up only when it is overdue by its own rhythm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative, Positive, ShareBelowOne
from headwise.methods.evict import Evict
from headwise.registry import Card, register

INTERVAL = 64  # decode steps between evictions, all of whose queries have to be seen


@register("evict", "lazy")
@dataclass(frozen=True)
class LazyEviction(Evict):
    """Ranks by how overdue a token is against the longest gap at which it was attended to so far.

    TS is the last query that gave the token more than `alpha`, MRI the longest gap between two such queries; the score
    is 2 sigmoid(-(now - TS) / MRI) + 2 sigmoid(-1 / MRI).

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    alpha: attention probability above which a query counts as attending to a token; above an even share of what is
    stored, or everything counts.
    window: latest tokens that stay, in tokens, out of the budget; of a prompt its last 64 or `window` queries count.
    """

    sinks: NonNegative = 0
    recent: NonNegative = 1
    alpha: ShareBelowOne = 0.01
    window: Positive = 64

    notes = 2
    needs = frozenset({"keys", "queries", "notes"})
    card = Card(
        title="LazyEviction",
        paper="LazyEviction: Lagged KV Eviction with Attention Pattern Observation for Efficient Long Reasoning, "
        "arXiv 2506.15969",
        systems=(149,),
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="tokens that were not attended to again within the longest gap known of them",
        deviations="alpha is 0.01: the paper's 1e-4 is below an even share of up to 10,000 tokens, and would count all "
        "of these as used; attention of the query group is averaged; a prompt longer than the budget is evicted from "
        "too, by its last queries; evicts every 64 decode steps whatever the window",
    )

    @property
    def last_queries(self) -> int:
        """All queries since the last eviction, and the window."""
        return max(self.window, INTERVAL)

    def note(self, view: View) -> torch.Tensor:
        """TS and MRI [h, n, 2] after the last queries. Queries that were counted before change nothing."""
        last = torch.maximum(view.notes[..., 0], view.positions.float())  # a new token was last seen when it came
        longest = view.notes[..., 1].clone()
        count = min(self.last_queries, view.queries.shape[2])
        for times, seen in view.group_means(count):
            there = slice(seen.shape[2])
            for now, given in zip(times.float(), seen.unbind(1), strict=True):
                used = torch.where(given > self.alpha, now, -1.0)  # -1 is before every use
                longest[:, there] = torch.maximum(longest[:, there], used - last[:, there])
                last[:, there] = torch.maximum(last[:, there], used)
            last[:, there] += 0 * seen.sum(1)  # no comparison may swallow a NaN
        return torch.stack((last, longest), dim=-1)

    def score(self, view: View) -> torch.Tensor:
        """The sum of the two sigmoids [h, n]; +inf within the window."""
        last, longest = view.notes[..., 0], view.notes[..., 1].clamp(min=1e-3)
        overdue = (view.seen - 1 - last).clamp(min=0) / longest
        score = 2 * (-overdue).sigmoid() + 2 * (-1 / longest).sigmoid()
        return score.masked_fill(view.positions >= view.seen - self.window, torch.inf)

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token."""
        rows = []
        for positions, notes in zip(view.positions.tolist(), view.notes.tolist(), strict=True):
            row = []
            for position, (last, longest) in zip(positions, notes, strict=True):
                gap = max(longest, 1e-3)
                overdue = max(0.0, view.seen - 1 - last) / gap
                score = 2 / (1 + math.exp(min(overdue, 700))) + 2 / (1 + math.exp(min(1 / gap, 700)))
                row.append(math.inf if position >= view.seen - self.window else score)
            rows.append(row)
        return torch.tensor(rows)

    def plain_note(self, view: View) -> torch.Tensor:
        """What `note` says, one query and one token at a time."""
        noted = view.notes.tolist()
        for h, positions in enumerate(view.positions.tolist()):
            keys = view.keys[h].double()
            for j, position in enumerate(positions):
                noted[h][j][0] = max(noted[h][j][0], position)
            for w, now in list(enumerate(view.query_positions.tolist()))[-self.last_queries :]:
                seen = [j for j, position in enumerate(positions) if position <= now]
                given = torch.stack([(keys[seen] @ q.double() * view.scale).softmax(0) for q in view.queries[h, :, w]])
                for j, weight in zip(seen, given.mean(0).tolist(), strict=True):
                    last, longest = noted[h][j]
                    if weight > self.alpha and now > last:
                        noted[h][j] = [now, max(longest, now - last)]
        return torch.tensor(noted)
