"""Control: reads tokens drawn at random, new ones at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Causal, Tokens, Where
from headwise.knobs import NonNegative
from headwise.methods.select import Select
from headwise.registry import Card, register


@register("select", "random_read")
@dataclass(frozen=True)
class RandomRead(Select):
    """budget: share of the stored tokens or number of tokens read per step. sinks, recent: tokens always read.
    skip_layers: first layers that read everything, for the control of methods that do so."""

    skip_layers: NonNegative = 0

    card = Card(
        title="Random selection (control)",
        paper="none: the control of every selection study",
        phase="decode",
        forgets="nothing for good: each step ignores tokens drawn at random",
        deviations="all heads of a layer draw alike",
    )

    def _lot(self, view: View) -> torch.Tensor:
        """A number for every entry, [n]: the same for the same seed, layer and step."""
        seed = (view.seed * 1_000_003 + view.seen) * 1_009 + view.layer
        return torch.rand(view.count, generator=torch.Generator().manual_seed(seed))

    def select(self, view: View) -> Where:
        """The entries with the highest numbers."""
        if view.layer < self.skip_layers:
            return Causal()
        return self.best(view, self._lot(view).to(view.positions.device).expand(view.positions.shape))

    def plain(self, view: View) -> Where:
        """The same token by token."""
        if view.layer < self.skip_layers:
            return Causal()
        lot, lists = self._lot(view).tolist(), []
        for own in view.positions.tolist():
            sure = [j for j, p in enumerate(own) if p < self.sinks or p >= view.seen - self.recent]
            others = sorted((j for j in range(len(own)) if j not in sure), key=lambda j: -lot[j])
            room = max(0, self.amount.tokens_of(view.count) - len(sure))
            lists.append(torch.tensor(sorted(sure + others[:room])))
        return Tokens(lists)
