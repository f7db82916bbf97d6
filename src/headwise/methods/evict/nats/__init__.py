"""Each token says itself how long it is needed: for good, until the next global token, or for a window."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.knobs import NonNegative, Positive
from headwise.methods import roles
from headwise.methods.evict import Evict
from headwise.registry import Card, register


@register("evict", "nats")
@dataclass(frozen=True)
class NAtS(Evict):
    """A linear head on the key gives every token and KV head one of three types: global, local or near.

    Global tokens stay, local ones until the next global one, near ones for `window` queries. With nats_prefill and
    nats_read every query sees exactly what the types let it see.

    budget: share of the tokens or number of tokens per KV head, at most; types may keep fewer. sinks, recent: tokens
    always kept. window: in tokens. stride: without a calibration of types, one token in so many is global.
    """

    sinks: NonNegative = 0
    recent: NonNegative = 1
    window: Positive = 256
    stride: Positive = 64

    needs = roles.NEEDS
    calibrates = roles.CALIBRATES
    card = Card(
        title="NAtS: neural attention search",
        paper="Neural Attention Search, arXiv 2502.13251, section 3",
        systems=(175,),
        calibrated=True,
        frees_memory=True,
        chunking="approximate",
        forgets="local and near tokens once their time is over",
        deviations="the head reads the key before rotation, where the paper's reads the layer's input; training starts "
        "from a fit to the model's attention, and does not teach a global token whose time it ends; without a "
        "calibration (`nats.head`) types go by position and the budget is filled up; what types keep beyond the budget "
        "leaves, the least global first; evicts every 64 decode steps, so read by nats_read",
    )

    def score(self, view: View) -> torch.Tensor:
        """Probability [h, n] of being global, of what the next query sees; below 0 for the rest, the latest highest."""
        return roles.merit(view, self.stride, self.window, view.seen)[0]

    def whole(self, view: View, chosen: torch.Tensor) -> torch.Tensor:
        """What the next query sees, where a calibration tells it."""
        return chosen & roles.merit(view, self.stride, self.window, view.seen)[1] if view.calibration else chosen

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token."""
        return torch.tensor(roles.plain_merit(view, self.stride, self.window, view.seen)[0])
