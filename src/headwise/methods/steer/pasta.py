"""What a user marks as important counts for more, in chosen heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Edit, Raised
from headwise.knobs import PositiveShare, Word
from headwise.methods.steer import Steer
from headwise.registry import Card, register


@register("steer", "pasta")
@dataclass(frozen=True)
class Pasta(Steer):
    """The weights of all tokens outside the marks are scaled down by `alpha`, and each row is brought back to 1.

    alpha: from just above 0 to 1, which changes nothing; 0.01 is the paper's. kind: the kind of the marks to emphasise.
    heads: those to steer; the paper takes the heads that help on several tasks when steered alone.
    """

    alpha: PositiveShare = 0.01
    kind: Word = "emphasis"

    at_rest = {"alpha": 1.0}
    needs = frozenset({"marks"})
    card = Card(
        title="PASTA, post-hoc attention steering",
        paper="Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs, arXiv 2311.02262, equation 2",
        phase="prefill and decode",
        chunking="exact",
        forgets="nothing, but what is not marked is read less",
        deviations="tokens that come after the prompt are outside the marks like others, where the released code "
        "leaves their weight as it is; several marks are one emphasised set, where that code scales each down for the "
        "others",
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,)

    def edit(self, view: View, group: int) -> Edit | None:
        """The marked keys raised by -log alpha, which is the same once rows sum to 1."""
        keys, heads = self.marked(view, self.kind), self.steered(view, group)
        return Raised(heads, keys, -math.log(self.alpha)) if bool(keys.any()) and bool(heads.any()) else None

    def plain(self, scores: torch.Tensor, view: View, member: int) -> torch.Tensor:
        """Weights, scaled down outside the marks and divided by their sum; rows that see no mark stay as they are."""
        weights = scores.softmax(-1)
        for j, position in enumerate(view.positions[0].tolist()):
            if not any(mark.kind == self.kind and mark.start <= position < mark.end for mark in view.marks):
                weights[:, j] *= self.alpha
        return weights / weights.sum(-1, keepdim=True)
