"""Heads that say something of their own keep all they can; the others sinks, recent tokens and a few in the middle."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import Positive, Share
from headwise.methods.evict import Evict
from headwise.registry import Card, register

LIFT = 4.0  # above any attention probability: a heterogeneous head's token goes before every other head's


@register("evict", "task_kv")
@dataclass(frozen=True)
class TaskKV(Evict):
    """Ranks tokens by the attention of the last `window` queries; those of heads far from the mean head go first.

    A head's output for the last query is its semantic vector; the `share` of heads farthest from their mean
    are heterogeneous, for good, as found at the end of the first chunk. With the budget part `ada(floor)` their
    tokens take the layer's budget, and the floor is what the other heads keep: sinks, recent tokens and their most
    attended ones in between. Without it heads keep equally many.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    share: share (0 to 1) of a layer's heads that are heterogeneous. window: last queries that vote, in tokens.
    """

    share: Share = 0.25
    window: Positive = 32

    notes = 1
    needs = frozenset({"keys", "values", "queries", "notes"})
    card = Card(
        title="Task-KV",
        paper="Task-KV: Task-aware KV Cache Optimization via Semantic Differentiation of Attention Heads, "
        "arXiv 2501.15113",
        systems=(1,),
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="most of the middle in heads whose output is close to the layer's mean",
        deviations="heads are KV heads, their vector the mean over the query group; Euclidean distance (the paper's "
        "norm and head ratio could not be verified); heads share the budget by the budget part",
    )

    @property
    def last_queries(self) -> int:
        """The window, so that votes span decode steps."""
        return self.window

    def note(self, view: View) -> torch.Tensor:
        """2 for every token of a heterogeneous head, 1 for the others' [h, n, 1]; once decided, it stays."""
        decided = view.notes[..., 0].amax(1)
        attended = view.observe(1).mean(dim=(1, 2))[:, None]
        outputs = (attended @ view.values.to(attended.dtype))[:, 0]
        distance = (outputs - outputs.mean(0)).norm(dim=-1)
        # Ranked by counting farther heads, ties to earlier ones.
        earlier = torch.ones(len(distance), len(distance), device=distance.device).tril(-1).bool()
        ahead = (distance[None] > distance[:, None]) | ((distance[None] == distance[:, None]) & earlier)
        found = 1.0 + (ahead.sum(1) < round(self.share * len(distance))) + 0 * distance  # no NaN is swallowed
        return torch.where(decided > 0, decided, found)[:, None, None].expand(-1, view.count, 1)

    def score(self, view: View) -> torch.Tensor:
        """Attention votes [h, n] from 0 to 1, those of heterogeneous heads lifted above all others."""
        votes = view.observe(min(self.window, view.queries.shape[2])).mean(dim=(1, 2))
        return votes + LIFT * (view.notes[..., 0].amax(1, keepdim=True) == 2)

    def plain(self, view: View) -> torch.Tensor:
        """The same from softmax rows, head by head."""
        heads, group, last, _ = view.queries.shape
        window, rows = min(self.window, last), []
        for h in range(heads):
            votes = torch.zeros(view.count).double()
            for g in range(group):
                for i in range(last - window, last):
                    logits = (view.keys[h].double() @ view.queries[h, g, i].double()) * view.scale
                    seen = view.positions[h] <= view.query_positions[i]
                    votes += logits.masked_fill(~seen, -torch.inf).softmax(0) / (group * window)
            own = max(note[0] for note in view.notes[h].tolist()) == 2
            rows.append(votes + (LIFT if own else 0.0))
        return torch.stack(rows)

    def plain_note(self, view: View) -> torch.Tensor:
        """What `note` says, head by head: of those decided before as it was decided."""
        vectors = []
        for h, keys in enumerate(view.keys.double()):
            rows = [(keys @ query.double() * view.scale).softmax(0) for query in view.queries[h, :, -1]]
            vectors.append(sum(row @ view.values[h].double() for row in rows) / len(rows))
        centre = sum(vectors) / len(vectors)
        far = sorted(range(len(vectors)), key=lambda h: -float((vectors[h] - centre).norm()))
        noted = []
        for h, before in enumerate(view.notes[..., 0].amax(1).tolist()):
            own = 2.0 if h in far[: round(self.share * len(far))] else 1.0
            noted.append(torch.full((view.count, 1), before or own))
        return torch.stack(noted)
