"""How experiments are seeded, and how what they train is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

Loss = Callable[[], torch.Tensor]


def generator(name: str, seed: int) -> torch.Generator:
    """The source of chance of one draw of an experiment; another for each name."""
    return torch.Generator().manual_seed(
        seed * 1_000_003 + sum(ord(letter) * 31**place for place, letter in enumerate(name[:8])) % 1_000_003
    )


def adam(
    parameters: Sequence[torch.Tensor],
    loss: Loss,
    steps: int,
    rate: float,
    after: Callable[[int], None] = (lambda step: None),
) -> None:
    """Adam whose rate falls to 0 along a cosine. loss: of a batch of its own at every call, the sum of what is trained
    side by side. after: called with the number of steps done."""
    with torch.enable_grad():
        optimiser = torch.optim.Adam(parameters, lr=rate)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
            after(step + 1)


def minimised(parameters: Sequence[torch.Tensor], loss: Loss, steps: int) -> None:
    """L-BFGS with a line search, for a loss without chance, until it no longer falls or `steps` are done."""
    with torch.enable_grad():
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

        optimiser.step(closure)
