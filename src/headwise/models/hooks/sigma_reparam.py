"""Weights of a spectral norm that is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from headwise.knobs import Positive
from headwise.models.hooking import Attached, Hook
from headwise.training_hooks import HookCard, training_hook


@training_hook("sigma_reparam")
@dataclass(frozen=True)
class SigmaReparam(Hook):
    """Every linear layer's weights are divided by their spectral norm and multiplied by a learned number; when training
    ends, they are what that comes to.

    iterations: of the power method, before training; one more is made with each forward of it.
    """

    iterations: Positive = 8
    card: ClassVar[HookCard] = HookCard(
        "Sigma reparametrisation",
        "Stabilizing Transformer Training by Preventing Attention Entropy Collapse, 2303.06296, section 3.2",
        "scores cannot grow beyond what a number a layer allows, so that attention does not collapse onto single "
        "tokens",
        "W <- gamma / sigma(W) W",
        "none: leave it out",
        systems=(114,),
        deviations="the first vectors of the power method come from several iterations, so that the first step already "
        "has the norm",
    )

    def attach(self, model: nn.Module) -> Reparametrised:
        layers = [one for one in model.modules() if isinstance(one, nn.Linear)]
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", Normed(layer.weight, self.iterations))
        return Reparametrised(layers)


class Normed(nn.Module):
    """gamma / sigma(W) W, sigma by the power method."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, iterations: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(()))
        self.register_buffer("u", F.normalize(torch.randn(weight.shape[0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(weight.shape[1]), dim=0))
        for _ in range(iterations):
            self._iterate(weight.detach())

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        self.v = F.normalize(weight.T @ self.u, dim=0)
        self.u = F.normalize(weight @ self.v, dim=0)

    def forward(self, weight: Tensor) -> Tensor:
        """`weight [out, in]` -> of that shape, with the spectral norm gamma."""
        if self.training:
            self._iterate(weight.detach())
        return self.gamma / (self.u @ weight @ self.v) * weight


class Reparametrised(Attached):
    """`sigma_reparam` at work."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.layers = layers

    def finish(self) -> None:
        for layer in self.layers:
            layer.eval()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def least_entropy(tokens: int, norm: float) -> float:
    """The paper's bound (theorem 3.1): no row of attention over `tokens` tokens, with scores of at most the spectral
    norm `norm` together, has less entropy, in nats."""
    ratio = torch.tensor(-norm * (tokens / (tokens - 1)) ** 0.5, dtype=torch.float64).exp()
    below = 1 + (tokens - 1) * ratio
    return float(below.log() + norm * (tokens * (tokens - 1)) ** 0.5 * ratio / below)
