"""How experiments are seeded, and how what they train is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import torch

Loss = Callable[[], torch.Tensor]


def generator(name: str, seed: int) -> torch.Generator:
    """The source of chance of one draw of an experiment; another for each name."""
    return torch.Generator().manual_seed(Random(f"{name}/{seed}").getrandbits(63))


def drawn(chance: torch.Generator, *shape: int) -> torch.Tensor:
    """A matrix [..., in, out] that is to be trained: normal, so that what it makes of normal inputs has variance 1."""
    return (torch.randn(shape, generator=chance) / shape[-2] ** 0.5).requires_grad_()


def share_right(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of rows [n, classes] whose largest logit is that of the label [n]."""
    return float((logits.argmax(-1) == labels).float().mean())


def adam(parameters: Sequence[torch.Tensor], loss: Loss, steps: int, rate: float) -> None:
    """Adam whose rate falls to 0 along a cosine. loss: of a batch of its own at every call, the sum of what is trained
    side by side."""
    with torch.enable_grad():
        optimiser = torch.optim.Adam(parameters, lr=rate)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()


def minimised(parameters: Sequence[torch.Tensor], loss: Loss, steps: int) -> None:
    """L-BFGS with a line search, for a loss without chance, until it no longer falls or `steps` are done."""
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(closure)
