"""ZipVL: the prompt attends to as few tokens of the layer as hold a share of the attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose, enough
from headwise.forms import VerticalSlash, Where
from headwise.knobs import NonNegative, Positive, PositiveShare
from headwise.methods.prefill import Prefill
from headwise.methods.probing import plain_probed, probed
from headwise.registry import Card, register


@register("prefill", "zipvl")
@dataclass(frozen=True)
class ZipVL(Prefill):
    """mass: share of the probed attention that the tokens read must hold (the paper's tau).

    last, drawn: probing queries, the last ones and random ones. nearest: latest tokens that a query reads, itself
    included. least: tokens read in any case.
    """

    mass: PositiveShare = 0.975
    last: Positive = 64
    drawn: NonNegative = 64
    nearest: Positive = 32
    least: Positive = 256

    needs = frozenset({"keys", "queries"})
    card = Card(
        title="ZipVL: token-adaptive prefill",
        paper="ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and KV Cache "
        "Compression, arXiv 2410.08584, section 4.2",
        systems=(107,),
        phase="prefill",
        query_aware=True,
        chunking="approximate",
        forgets="nothing is dropped, but tokens that the probing queries did not attend to are read by nobody far away",
        deviations="every query is computed, and reads its nearest tokens beside the important ones; the tokens are "
        "shared by the KV heads that hold equally many; mixed-precision storing is a part of its own, zipvl_bits",
    )

    def where(self, view: View) -> Where:
        """Columns of the important tokens, and the nearest diagonals."""
        return self._choose(view, *probed(view, self.last, self.drawn))

    def _choose(self, view: View, mass: torch.Tensor, visible: torch.Tensor) -> Where:
        """As many columns as hold the share of the heads' `mass [h, n]`, the best by mass per query that could see
        them."""
        mass, visible = mass.sum(0), visible.sum(0)
        count = enough(mass[None], self.mass).clamp(min=self.least)
        chosen = choose((mass / visible.clamp(min=1))[None], count, torch.zeros_like(mass, dtype=torch.bool)[None])
        heads, near = len(view.heads), torch.arange(min(self.nearest, view.count), device=mass.device)
        return VerticalSlash(chosen * heads, (near,) * heads)

    def plain(self, view: View) -> Where:
        """The same one softmax row at a time."""
        return self._choose(view, *plain_probed(view, self.last, self.drawn))
