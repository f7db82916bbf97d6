"""Control: reads the sinks and the latest tokens, whatever the query looks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Causal, Tokens, Where
from headwise.knobs import NonNegative
from headwise.methods.select import Select
from headwise.registry import Card, register


@register("select", "recent_read")
@dataclass(frozen=True)
class RecentRead(Select):
    """budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.
    skip_layers: first layers that read everything, for the control of methods that do so."""

    skip_layers: NonNegative = 0

    card = Card(
        title="Sinks and recent tokens (control)",
        paper="StreamingLLM, arXiv 2309.17453, as a selection: nothing is evicted",
        phase="decode",
        forgets="nothing for good: each step ignores all but sinks and the latest tokens",
        deviations="tokens outside the window stay stored",
    )

    def select(self, view: View) -> Where:
        """The latest stored tokens within the budget."""
        if view.layer < self.skip_layers:
            return Causal()
        return self.best(view, view.positions.double())

    def plain(self, view: View) -> Where:
        """The same token by token."""
        if view.layer < self.skip_layers:
            return Causal()
        lists = []
        for own in view.positions.tolist():
            sure = [j for j, p in enumerate(own) if p < self.sinks or p >= view.seen - self.recent]
            others = sorted((j for j in range(len(own)) if j not in sure), key=lambda j: -own[j])
            room = max(0, self.amount.tokens_of(view.count) - len(sure))
            lists.append(torch.tensor(sorted(sure + others[:room])))
        return Tokens(lists)
