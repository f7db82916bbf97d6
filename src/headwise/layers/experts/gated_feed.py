"""The feed-forward network of most decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from headwise.layer_parts import LayerCard, feed_part
from headwise.layers.base import State
from headwise.layers.feeds import Feed, FeedModule, Gated


@feed_part("gated_feed")
@dataclass(frozen=True)
class GatedFeed(Feed):
    """One gated network for all tokens."""

    card: ClassVar[LayerCard] = LayerCard(
        "Gated feed-forward network",
        "GLU Variants Improve Transformer, 2002.05202",
        "nothing",
        "y = W_d (silu(W_g x) * W_u x)",
    )

    def build(self, width: int, hidden: int) -> GatedAlone:
        return GatedAlone(width, hidden)


class GatedAlone(FeedModule):
    """The module of `gated_feed`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.network = Gated(width, hidden)

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """What is added to `x`; there is no state."""
        return self.network(x), None
