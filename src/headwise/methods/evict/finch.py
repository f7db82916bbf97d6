"""The question at the end of a prompt chooses: every query of it counts by how many tokens it had to choose from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import Positive, Word
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "finch")
@dataclass(frozen=True)
class Finch(Evict):
    """The attention of the question's tokens, each times the number of tokens before it, averaged over them and the
    query group. The question is the prompt's last mark of its kind and what follows; without one, the last `window`.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    window: last queries that vote where no question is marked; their own tokens stay. kind: the kind of the mark.
    """

    window: Positive = 32
    kind: Word = "question"

    needs = frozenset({"keys", "queries", "marks"})
    card = Card(
        title="FINCH",
        paper="FINCH: Prompt-guided Key-Value Cache Compression, TACL 2024, 10.1162/tacl_a_00716",
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="prompt tokens that the question did not attend to; another question may need them",
        deviations="the question is a mark, where the released code cuts the prompt at an extra token; it comes once, "
        "at the end of the prompt, so that earlier chunks are judged by their own last tokens; keys keep "
        "their positions (a selection with positions='compact' reads them closed up); sinks and recent are protected",
    )

    @property
    def last_queries(self) -> int:
        """The window, so that votes span decode steps."""
        return self.window

    def voters(self, view: View) -> int:
        """How many of the queries at hand vote."""
        starts = [mark.start for mark in view.marks if mark.kind == self.kind and mark.start < view.seen]
        asked = view.seen - starts[-1] if starts and view.phase == "prefill" else self.window
        return min(asked, view.queries.shape[2])

    def score(self, view: View) -> torch.Tensor:
        """Votes [h, n]; +inf for the voters' own tokens."""
        count, total = self.voters(view), torch.zeros(view.positions.shape, device=view.positions.device)
        for at, given in view.group_means(count):
            before = (view.positions[:, None] < at[:, None]).sum(-1)  # [h, t]
            total[:, : given.shape[2]] += (given * before[..., None]).sum(1)
        return (total / count).masked_fill(view.positions >= view.seen - count, torch.inf)

    def plain(self, view: View) -> torch.Tensor:
        """The same, query by query."""
        heads, group, last, _ = view.queries.shape
        count, rows = self.voters(view), []
        for h in range(heads):
            votes = torch.zeros(view.count, dtype=torch.float64)
            for g in range(group):
                for i in range(last - count, last):
                    at = int(view.query_positions[i])
                    logits = (view.keys[h].double() @ view.queries[h, g, i].double()) * view.scale
                    weights = logits.masked_fill(view.positions[h] > at, -torch.inf).softmax(0)
                    votes += weights * sum(place < at for place in view.positions[h].tolist()) / (count * group)
            rows.append(votes.masked_fill(view.positions[h] >= view.seen - count, torch.inf))
        return torch.stack(rows)
