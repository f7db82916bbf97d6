"""Routers are kept from sending all tokens to the same experts or heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import RecipeError
from headwise.knobs import Weight
from headwise.layers.routing import Router, imbalance
from headwise.models.hooking import Heard, Hook, Step
from headwise.training_hooks import HookCard, training_hook


@training_hook("balance")
@dataclass(frozen=True)
class Balance(Hook):
    """How unevenly the routers of experts and heads spread tokens is added to the loss.

    weight: of the mean over routers.
    """

    weight: Weight = 0.01
    card: ClassVar[HookCard] = HookCard(
        "Load balance loss",
        "Switch Transformers, 2101.03961, section 2.2",
        "no expert is sent all tokens, and none is sent none",
        "loss + weight n sum over experts of (mean share) (share of tokens sent)",
        "a weight of 0",
    )

    def attach(self, model: nn.Module) -> Balanced:
        routers = [one for one in model.modules() if isinstance(one, Router)]
        if not routers:
            raise RecipeError("balance: no layer of the host has a router; give it experts(4) or routed_heads")
        return Balanced(routers, self.weight)


class Balanced(Heard):
    """`balance` at work."""

    def __init__(self, routers: list[Router], weight: float) -> None:
        super().__init__(list(routers))
        self.tops, self.weight = [router.top for router in routers], weight

    def loss(self, step: Step) -> Tensor:
        uneven = [imbalance(shares, self.tops[place]) for place, shares in self.heard.items()]
        return self.weight * torch.stack(uneven).mean()
