"""New tokens read what the types of Neural Attention Search let them see, at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.forms import Tokens
from headwise.knobs import NonNegative, Positive
from headwise.methods import roles
from headwise.methods.select import Select
from headwise.registry import Card, register


@register("select", "nats_read")
@dataclass(frozen=True)
class NAtSRead(Select):
    """Reads global tokens, local ones up to the next global one and near ones for `window` queries.

    budget: share of the stored tokens or number of tokens read per step, at most. sinks, recent: tokens always read.
    window: in tokens. stride: without a calibration of types, one token in so many is global.
    """

    sinks: NonNegative = 0
    recent: NonNegative = 1
    window: Positive = 256
    stride: Positive = 64

    needs = roles.NEEDS | {"queries"}
    calibrates = roles.CALIBRATES
    card = Card(
        title="NAtS: reading by types",
        paper="Neural Attention Search, arXiv 2502.13251, section 3",
        systems=(175,),
        phase="decode",
        calibrated=True,
        forgets="nothing for good: a step ignores local and near tokens whose time is over",
        deviations="types are told anew from all stored keys at every step (`nats_read.head`); several new tokens at "
        "once read what the first of them does; what is over the budget is not read, the least global first",
    )

    def pays(self, stored: int) -> bool:
        """Also where the budget covers everything: it is the types that leave tokens out."""
        return stored >= self.starts

    def select(self, view: View) -> Tokens:
        """What the first of the new tokens sees, those of most probability of being global within the budget."""
        rank, there = roles.merit(view, self.stride, self.window, view.seen - view.queries.shape[2])
        protect = self.protect(view)
        best = choose_mask(rank, self.amount.tokens_of(view.count), protect) & there | protect
        return Tokens([mask.nonzero()[:, 0] for mask in best])

    def plain(self, view: View) -> Tokens:
        """The same, token by token."""
        ranks, seen = roles.plain_merit(view, self.stride, self.window, view.seen - view.queries.shape[2])
        lists = []
        for rank, there, places in zip(ranks, seen, view.positions.tolist(), strict=True):
            sure = [j for j, p in enumerate(places) if p < self.sinks or p >= view.seen - self.recent]
            others = sorted((j for j in range(len(places)) if j not in sure), key=lambda j: (-rank[j], -j))
            room = max(0, self.amount.tokens_of(view.count) - len(sure))
            lists.append(torch.tensor(sorted(sure + [j for j in others[:room] if there[j]])))
        return Tokens(lists)
