"""Selections that can place what they read inside the positions a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from headwise.attention.view import View
from headwise.knobs import MOST
from headwise.methods.select import Select
from headwise.registry import Card
from headwise.shapes import Amount


@dataclass(frozen=True)
class Repositioned(Select):
    """Base of the methods that can place what they read inside the positions the model was trained on.

    positions: "true", or the name of the method's policy: then each step of t tokens, of a prompt too, reads itself and
    beside it what is chosen of its past, re-rotated to other positions. Lengths are then not bound to the trained ones.
    """

    positions: Literal["true", "compact"] = field(default="true", kw_only=True)

    @property
    def view_needs(self) -> frozenset[str]:
        """With a policy the rotation, too, to undo it."""
        return self.needs | {"rope"} if self.repositions else self.needs

    @property
    def own_card(self) -> Card:
        """With a policy it acts in prompts, too."""
        if not self.repositions:
            return self.card
        return replace(self.card, phase="prefill and decode", chunking="approximate")

    @property
    def repositions(self) -> bool:
        """Whether a policy is named."""
        return self.positions != "true"

    def beside(self, tokens: int) -> Repositioned:
        """The method for a step of `tokens` new ones, which are read beside its budget and its recent tokens."""
        amount = Amount(self.amount.share, (self.amount.tokens or 0) + tokens)
        return replace(self, budget=amount, recent=min(self.recent + tokens, MOST))

    def span(self, past: int) -> int:
        """Most positions that what is read of `past` tokens takes."""
        return max(self.amount.tokens_of(past), min(past, max(self.sinks + self.recent, self.starts - 1)))

    def places(self, view: View, past: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Positions [m] of the chosen entries `past [m]` of each head: as if nothing else had been stored."""
        return [torch.arange(len(entries), device=entries.device) for entries in past]

    def bare(self, view: View) -> View:
        """The view with keys and queries as they were before rotation, as far apart as no training was; with true
        positions, as it is."""
        if not self.repositions or view.rope is None:
            return view
        turned = {"queries": view.rope.unrotate(view.queries, view.query_positions)}
        if "keys" in view.granted:
            turned["keys"] = view.rope.unrotate(view.keys, view.positions)
        return replace(view, granted={**view.granted, **turned})
