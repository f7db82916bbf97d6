"""A feed-forward network without a gate, most of whose hidden channels are exactly 0 for a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.layer_parts import LayerCard, feed_part
from headwise.layers.base import State
from headwise.layers.feeds import Feed, FeedModule
from headwise.layers.projections import linear


@feed_part("squared_relu")
@dataclass(frozen=True)
class SquaredRelu(Feed):
    """Squares of what is above 0 in one hidden layer."""

    card: ClassVar[LayerCard] = LayerCard(
        "Squared-ReLU feed-forward network",
        "PLM, 2503.12167, its section on the architecture; Primer, 2109.08668",
        "hidden channels below 0 are exactly 0, so that their rows of the second matrix need not be read",
        "y = W_d max(W_u x, 0)^2",
        systems=(275,),
        deviations="of row 275 the network alone; latent attention is `mla`",
    )

    def build(self, width: int, hidden: int) -> Squared:
        return Squared(width, hidden)


class Squared(FeedModule):
    """The module of `squared_relu`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = linear(width, hidden), linear(hidden, width)

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """What is added to `x`; there is no state."""
        return self.down(self.hidden(x)), None

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden channels of `x [..., width]`."""
        return F.relu(self.up(x)).square()

    def skipping(self, x: Tensor, least: float = 0.0) -> Tensor:
        """What is added to one token `x [width]`, by the channels above `least` alone."""
        hidden = self.hidden(x)
        read = torch.nonzero(hidden > least)[:, 0]
        return self.down.weight[:, read] @ hidden[read]
