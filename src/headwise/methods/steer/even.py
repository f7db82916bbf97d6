"""A counterfactual: within marked tokens, such as those of an image, attention is spread evenly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.attention.view import View
from headwise.forms import Edit
from headwise.knobs import Share, Word
from headwise.methods.steer import Steer
from headwise.registry import Card, register


@dataclass(frozen=True, eq=False)
class Spread(Edit):
    """Scores of some keys, bool `[h, n]`, move by a share of the way to the one score at which they have together the
    weight that they had."""

    keys: Tensor
    share: float

    def change(self, s: Tensor, visible: Tensor) -> Tensor:
        keys = self.keys[:, None, None, : s.shape[-1]]
        shown = visible[:, None] & keys
        level = s.masked_fill(~shown, -torch.inf).logsumexp(-1, keepdim=True) - shown.sum(-1, keepdim=True).log()
        level = level.nan_to_num(0.0, 0.0, 0.0)  # of rows that see none of them
        return torch.where(keys, torch.lerp(s, level, self.share), s)


@register("steer", "even")
@dataclass(frozen=True)
class Even(Steer):
    """What marked tokens get together is spread evenly over them: what a model would say that reads the image, and not
    where in it.

    strength: how far scores move to the even ones; 0 changes nothing. kind: the kind of the marks.
    """

    strength: Share = 1.0
    kind: Word = "image"

    at_rest = {"strength": 0.0}
    needs = frozenset({"marks"})
    card = Card(
        title="Even attention within marks",
        paper="Mitigating Modality Prior-Induced Hallucinations in Multimodal Large Language Models via Deciphering "
        "Attention Causality (CausalMM), ICLR 2025, arXiv 2410.04780, section 3: the uniform counterfactual",
        systems=(136,),
        phase="prefill and decode",
        chunking="exact",
        forgets="nothing",
        deviations="the weight within the marks alone is made uniform, where the paper makes whole attention maps so; "
        "the random, reversed and shuffled maps are not here",
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,)

    def edit(self, view: View, group: int) -> Edit | None:
        """Which keys are evened."""
        keys, heads = self.marked(view, self.kind), self.steered(view, group)
        return Spread(heads, keys, self.strength) if bool(keys.any()) and bool(heads.any()) else None

    def plain(self, scores: Tensor, view: View, member: int) -> Tensor:
        """Row by row: the mean weight of the marked keys, in logarithms where the strength is below 1."""
        out = scores.clone()
        marked = [
            any(m.kind == self.kind and m.start <= at < m.end for m in view.marks) for at in view.positions[0].tolist()
        ]
        for before, row in zip(scores, out, strict=True):
            own = [j for j, inside in enumerate(marked) if inside and bool(before[j] > -torch.inf)]
            if own:
                level = before[own].exp().mean().log()
                for j in own:
                    row[j] = (1 - self.strength) * before[j] + self.strength * level
        return out.softmax(-1)
