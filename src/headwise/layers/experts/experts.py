"""Several networks, of which a token is sent to the few that its router says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import RecipeError
from headwise.knobs import Positive
from headwise.layer_parts import LayerCard, feed_part
from headwise.layers.base import State
from headwise.layers.feeds import Feed, FeedModule, Gated
from headwise.layers.routing import Router, chosen


@feed_part("experts")
@dataclass(frozen=True)
class Experts(Feed):
    """A token is sent to its best experts, whose answers are weighed by the router's shares.

    count: experts, each as large as the one network of a plain host. top: of them that a token is sent to.
    """

    count: Positive = 4
    top: Positive = 1
    card: ClassVar[LayerCard] = LayerCard(
        "Sparse mixture of experts",
        "Switch Transformers, 2101.03961, section 2; of more than one expert as 1701.06538",
        "tokens are sent to networks of their own; those that are not asked compute nothing",
        "y = sum over the top experts e of p_e f_e(x), p = softmax(W x)",
        deviations="no capacity: every token that is sent to an expert is answered",
    )

    def conflict(self) -> str | None:
        return (
            None if self.top <= self.count else f"top={self.top} of {self.count} experts; give top {self.count} or less"
        )

    def build(self, width: int, hidden: int) -> Sent:
        return Sent(self.count, self.top, width, hidden)


class Sent(FeedModule):
    """The module of `experts`."""

    def __init__(self, count: int, top: int, width: int, hidden: int) -> None:
        super().__init__()
        if hidden < 1:
            raise RecipeError(f"experts: networks of {hidden} channels; give 1 or more")
        self.router = Router(width, count, top)
        self.networks = nn.ModuleList(Gated(width, hidden) for _ in range(count))

    def forward(self, x: Tensor, segments: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """What is added to `x`; there is no state."""
        return self.answered(x, self.router(x)), None

    def answered(self, x: Tensor, shares: Tensor) -> Tensor:
        """What the experts say of `x [batch, tokens, width]`, each asked of the tokens that are sent to it alone;
        `shares [batch, tokens, experts]` sum to 1."""
        flat, weights = x.flatten(0, 1), chosen(shares, self.router.top).flatten(0, 1)
        found = torch.zeros_like(flat)
        for expert, network in enumerate(self.networks):
            own = weights[:, expert].nonzero()[:, 0]
            if len(own):
                said = network(flat[own]) * weights[own, expert, None].to(x.dtype)
                found = found.index_add(0, own, said)
        return found.view_as(x)
