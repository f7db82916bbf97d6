"""The scores of marked tokens, such as those of an image, grow by a share of their size for what is being written."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.attention.view import View
from headwise.forms import Edit
from headwise.knobs import Weight, Word
from headwise.methods.steer import Steer
from headwise.registry import Card, register


@dataclass(frozen=True, eq=False)
class Grown(Edit):
    """A score s becomes s + share |s|. share: `[h, n]`, 0 for keys that stay as they are."""

    share: Tensor

    def change(self, s: Tensor, visible: Tensor) -> Tensor:
        return s + self.share[:, None, None, : s.shape[-1]].to(s) * s.abs()


@register("steer", "paint")
@dataclass(frozen=True)
class Paint(Steer):
    """For the current query, local tokens get s + alpha |s| in place of their score s, summary tokens s + beta |s|.

    alpha, beta: 0 changes nothing; 0.9 and 0.3 are among the paper's. kind, summary: the kinds of the marks of local
    and of summary tokens; where both cover a token it is a summary one.
    """

    alpha: Weight = 0.9
    beta: Weight = 0.3
    kind: Word = "image"
    summary: Word = "summary"

    at_rest = {"alpha": 0.0, "beta": 0.0}
    needs = frozenset({"marks"})
    last_only = True
    card = Card(
        title="PAINT",
        paper="Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model, arXiv "
        "2501.12206, section 4",
        systems=(52,),
        phase="prefill and decode",
        chunking="exact",
        forgets="nothing, but what is not marked is read less",
        deviations="marks name the local and the summary tokens, which the paper finds by the attention of its image "
        "encoder; all layers are steered unless heads says otherwise, where the "
        "paper leaves out the first; of up to 16 new tokens in one forward each is a current query, where the released "
        "code takes the last",
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind, self.summary)

    def edit(self, view: View, group: int) -> Edit | None:
        """By key, the share that its score grows by."""
        local, summary = self.marked(view, self.kind), self.marked(view, self.summary)
        share = torch.where(summary, self.beta, torch.where(local, self.alpha, 0.0))
        heads = self.steered(view, group)
        return Grown(heads, share) if bool(share.any()) and bool(heads.any()) else None

    def plain(self, scores: Tensor, view: View, member: int) -> Tensor:
        """The same key by key, for the last query alone."""
        grown = scores.clone()
        for j, position in enumerate(view.positions[0].tolist()):
            kinds = {mark.kind for mark in view.marks if mark.start <= position < mark.end}
            share = self.beta if self.summary in kinds else self.alpha if self.kind in kinds else 0.0
            if share and bool(scores[-1, j] > -torch.inf):
                grown[-1, j] += share * scores[-1, j].abs()
        return grown.softmax(-1)
