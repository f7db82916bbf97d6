"""Codes of several levels, filled level by level: of a level the surest places first, over several rounds, all at once.

A residual quantiser writes a sound as a few codes for every frame, the coarse ones first. Where a model sees all frames
at once, those of a level can be filled in a few passes (Borsos et al., SoundStorm, arXiv 2305.09636, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from headwise.errors import HeadwiseError

Guess = Callable[[torch.Tensor, int], torch.Tensor]  # codes [b, n, q] and a level -> its logits [b, n, vocab]


@dataclass(frozen=True)
class Levels:
    """Filled codes [b, n, q]. passes: calls of the model. order: [b, n, q], in which round of its level each was."""

    codes: torch.Tensor
    passes: int
    order: torch.Tensor


def fill_levels(
    guess: Guess, codes: torch.Tensor, mask: int, rounds: Sequence[int], random: torch.Generator | None = None
) -> Levels:
    """Fill the places of codes [b, n, q] that are `mask`; what is known stays, and is seen from the first pass on.

    rounds: passes of each level, such as (16, 1, 1). After round r of R as many of a level's places are open as
    cos(pi r / 2 R) of those that it began with, at least one less than before. random: draws codes; None takes the
    likeliest. A code counts as sure as the model is of it.
    """
    if len(rounds) != codes.shape[2] or min(rounds, default=0) < 1:
        raise HeadwiseError(
            f"rounds={tuple(rounds)} for {codes.shape[2]} levels: give each level's passes, 1 or more of each"
        )
    codes, order, passes = codes.clone(), torch.zeros_like(codes), 0
    for level, most in enumerate(rounds):
        own = codes[..., level]
        begun = (own == mask).sum(1)
        for number in range(1, most + 1):
            open_ = own == mask
            if not bool(open_.any()):
                break
            chosen, sure = _drawn(guess(codes, level), mask, random)
            passes += 1
            stay = (begun * math.cos(math.pi / 2 * number / most) + 1e-6).long()
            fill = open_.sum(1) - torch.minimum(stay, open_.sum(1) - 1)
            ranks = sure.masked_fill(~open_, -1.0).argsort(dim=1, descending=True, stable=True).argsort(1)
            now = open_ & (ranks < fill[:, None])
            own[now] = chosen[now]
            order[..., level][now] = number
    return Levels(codes, passes, order)


def _drawn(logits: torch.Tensor, mask: int, random: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """A code for every place [b, n], which is not `mask`, and its probability."""
    if mask < logits.shape[2]:
        logits = logits.index_fill(2, torch.tensor(mask, device=logits.device), -torch.inf)
    by = logits.softmax(-1)
    drawn = by.argmax(-1)
    if random is not None:
        drawn = torch.multinomial(by.flatten(0, 1), 1, generator=random).view(by.shape[:2])
    return drawn, by.gather(2, drawn[..., None])[..., 0]
