"""Training of the small networks that methods ask: gates and heads, on what a frozen model shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from headwise.errors import HeadwiseError

Lesson = TypeVar("Lesson")


def trained(
    start: Mapping[str, torch.Tensor],
    lessons: Sequence[Lesson],
    loss: Callable[[Lesson, Mapping[str, torch.Tensor]], torch.Tensor],
    steps: int,
    rate: float,
) -> dict[str, torch.Tensor]:
    """The weights `start` after `steps` steps of Adam, one lesson each, of which the rate falls as a cosine."""
    weights = {name: one.clone().requires_grad_() for name, one in start.items()}
    optimiser = torch.optim.Adam(weights.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad():
        for step in range(steps):
            optimiser.zero_grad()
            loss(lessons[step % len(lessons)], weights).backward()
            optimiser.step()
            schedule.step()
    return {name: one.detach() for name, one in weights.items()}


def trained_layers(
    start: Mapping[str, torch.Tensor],
    heads: Sequence[int],
    lessons: Mapping[int, Sequence[Lesson]],
    loss: Callable[[Lesson, Mapping[str, torch.Tensor]], torch.Tensor],
    steps: int,
    rate: float,
) -> dict[str, torch.Tensor]:
    """The weights [layers, h, ...] of every layer, `trained` from its share of `start` [h, ...] on the layer's own
    lessons; `start` itself where there are none. heads: KV heads by layer, of which `start` has room for the most."""
    whole = {name: one.cpu().expand(len(heads), *one.shape).clone() for name, one in start.items()}
    for layer, taught in lessons.items():
        own = {name: one[: heads[layer]] for name, one in start.items()}
        for name, one in trained(own, taught, loss, steps, rate).items():
            whole[name][layer, : heads[layer]] = one.cpu()
    return whole


def finite(gradient: torch.Tensor, of: str) -> torch.Tensor:
    """The gradient, all of it finite; HeadwiseError, naming what it is the gradient `of`, otherwise."""
    if not bool(gradient.isfinite().all()):
        raise HeadwiseError(
            f"the gradient of {of} is not finite: it overflows where a token's state is zero in many layers, as with "
            "an embedding of zeros; look at the documents' tokens, or name the other measures with --only"
        )
    return gradient
