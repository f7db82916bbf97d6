"""The papers, one file each, in the room of its part. The verb of a part stands in its folder's __init__.py."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.knobs import Budget, Knobs, NonNegative
from headwise.registry import CalibrationTensor, Card
from headwise.shapes import Amount


def among_best(scores: torch.Tensor | None, share: float, layer: int, head: int) -> bool:
    """Whether a KV head is among the `share` of a model's heads with the highest scores, rounded up.

    scores: [layers, KV heads], or with query heads g at the end, any of which will do. Without scores no head is.
    """
    if scores is None:
        return False
    count = math.ceil(round(share * scores.numel(), 6))  # 0.15 * 20 is 3, not 3.0000000000000004
    flat = scores.reshape(1, -1)
    best = choose_mask(flat, count, torch.zeros_like(flat, dtype=torch.bool)).view(scores.shape)
    return bool(best[layer, head].any())


@dataclass(frozen=True)
class Method(Knobs, ABC):
    """Base of the methods of all parts: what each of them declares beside its knobs.

    needs: what its views show, see `View`. calibrates: the calibration tensors that it reads, by name; a plan holds
    them as `"<method>.<name>"`. borrows: those that it reads of another part of its paper, by the plan's name.
    """

    name: ClassVar[str]  # both given by `register`
    part: ClassVar[str]
    card: ClassVar[Card]
    needs: ClassVar[frozenset[str]] = frozenset()
    calibrates: ClassVar[Mapping[str, CalibrationTensor]] = {}
    borrows: ClassVar[tuple[str, ...]] = ()
    weighs: ClassVar[bool] = False  # whether what it reads can count for more or less than one

    @property
    def view_needs(self) -> frozenset[str]:
        """`needs`, and what the knobs make it need beside them."""
        return self.needs

    @property
    def own_card(self) -> Card:
        """The card, with what the knobs change."""
        return self.card

    @property
    def not_of_latents(self) -> str | None:
        """Why it cannot work where values are channels of their keys (latent attention); None where it can."""
        return None


@dataclass(frozen=True)
class Budgeted(Method):
    """What evict and select methods share: a budget, and the entries that no score may leave out.

    budget: share of the tokens (0 < x <= 1) or number of tokens, per KV head on average; of an eviction also bytes.
    sinks: first tokens of the sequence, always in (StreamingLLM, 2309.17453, section 3).
    recent: last tokens, always in.
    """

    budget: Budget = 1.0
    sinks: NonNegative = 4
    recent: NonNegative = 32

    @cached_property
    def amount(self) -> Amount:
        """The budget as an Amount, whatever it was given as."""
        return Amount.of(self.budget)

    def tokens_of(self, seen: int) -> int:
        """Tokens that the budget means of `seen`."""
        return self.amount.tokens_of(seen)

    def protect(self, view: View) -> torch.Tensor:
        """Bool [h, n]: entries that stay in whatever their score."""
        protect = torch.zeros(view.positions.shape, dtype=torch.bool, device=view.positions.device)
        for own, (low, high) in zip(protect, view.cuts(self.sinks, view.seen - self.recent), strict=True):
            own[:low] = True
            own[high:] = True
        return protect
