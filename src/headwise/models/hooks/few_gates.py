"""Gates that choose between everything and neighbours are pulled shut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwise.errors import RecipeError
from headwise.knobs import Weight
from headwise.layers.pairs import PairWeights
from headwise.layers.sparse.here_or_all import GATE
from headwise.models.hooking import Heard, Hook, Step, attention_layers
from headwise.training_hooks import HookCard, training_hook


@training_hook("few_gates")
@dataclass(frozen=True)
class FewGates(Hook):
    """The mean of all gates of `here_or_all`, times a weight, is added to the loss.

    weight: of that mean.
    """

    weight: Weight = 0.1
    card: ClassVar[HookCard] = HookCard(
        "Penalty on calls of full attention",
        "Learning When Not to Attend Globally, 2512.22562, section 3",
        "queries learn to do with their neighbours where that costs little",
        "loss + weight mean of sigmoid(w_h . x_i + b_h)",
        "a weight of 0",
    )

    def attach(self, model: nn.Module) -> Penalty:
        modules = [
            layer.gates.by_name[GATE]
            for layer in attention_layers(model)
            if isinstance(layer.gates, PairWeights) and GATE in layer.gates.by_name
        ]
        if not modules:
            raise RecipeError("few_gates: no layer of the host has gates; give one the pattern here_or_all(span)")
        return Penalty(modules, self.weight)


class Penalty(Heard):
    """`few_gates` at work."""

    def __init__(self, modules: list[nn.Module], weight: float) -> None:
        super().__init__(modules)
        self.weight = weight

    def loss(self, step: Step) -> Tensor:
        return self.weight * torch.stack([gate.mean() for gate in self.heard.values()]).mean()
