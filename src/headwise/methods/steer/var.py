"""What image-reading heads give to sinks goes to the rest of the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.attention.view import View
from headwise.forms import Edit, moved
from headwise.knobs import Share, Word
from headwise.methods.steer import Steer
from headwise.registry import Card, register


@dataclass(frozen=True, eq=False)
class Redistributed(Edit):
    """In rows that give the image at least `least` of their weight, and sinks at most `rho` of that, sinks keep a share
    of theirs. image, sink: bool `[h, n]`."""

    image: Tensor
    sink: Tensor
    keep: float
    rho: float
    least: float

    def change(self, s: Tensor, visible: Tensor) -> Tensor:
        n = s.shape[-1]
        image, sink = (one[:, None, None, :n] for one in (self.image, self.sink))
        weights = s.masked_fill(~visible[:, None], -torch.inf).softmax(-1)
        seen, drained = (weights * image).sum(-1, keepdim=True), (weights * (image & sink)).sum(-1, keepdim=True)
        reads = (seen >= self.least) & (drained <= self.rho * seen)
        given = image & ~sink
        return torch.where(reads, moved(s, visible, sink, given, self.keep), s)


@register("steer", "var")
@dataclass(frozen=True)
class Var(Steer):
    """Rows of a head that read the image leave sinks, of image and text, `keep` of their weight; the other tokens of
    the image get the rest, as they have it.

    keep: 0.6 is the paper's; 1 changes nothing. least: of a row's weight, what the image has to get. rho: of the
    image's weight, most that sinks may have. kind, sink: the kinds of the marks of images and of sinks, which
    `headwise.vision.sinks` finds.
    """

    keep: Share = 0.6
    least: Share = 0.2
    rho: Share = 0.5
    kind: Word = "image"
    sink: Word = "sink"

    at_rest = {"keep": 1.0}
    needs = frozenset({"marks"})
    card = Card(
        title="Visual attention redistribution",
        paper="See What You Are Told: Visual Attention Sink in Large Multimodal Models, ICLR 2025, arXiv 2503.03321, "
        "section 4",
        systems=(71,),
        phase="prefill and decode",
        chunking="exact",
        forgets="nothing, but sinks are read less",
        deviations="marks name the sinks, found once before the prompt is read, where the released code finds them "
        "anew in every layer; all layers are steered unless heads says otherwise, where the paper leaves out the last; "
        "a row that sees no sink or nothing else of the image stays as it is",
    )

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.sink, self.kind)

    def edit(self, view: View, group: int) -> Edit | None:
        """Where the image and the sinks are."""
        image, sink, heads = self.marked(view, self.kind), self.marked(view, self.sink), self.steered(view, group)
        if not (bool(image.any()) and bool(sink.any()) and bool(heads.any())):
            return None
        return Redistributed(heads, image, sink, self.keep, self.rho, self.least)

    def plain(self, scores: Tensor, view: View, member: int) -> Tensor:
        """Weights, row by row and key by key."""
        weights = scores.softmax(-1)
        kinds = [{m.kind for m in view.marks if m.start <= at < m.end} for at in view.positions[0].tolist()]
        sinks = [j for j, own in enumerate(kinds) if self.sink in own]
        others = [j for j, own in enumerate(kinds) if self.kind in own and self.sink not in own]
        both = [j for j in sinks if self.kind in kinds[j]]
        for row in weights:
            seen, drained = float(row[others].sum() + row[both].sum()), float(row[both].sum())
            taken, had = row[sinks].sum(), row[others].sum()
            if seen >= self.least and drained <= self.rho * seen and taken > 0 and had > 0:
                row[others] *= 1 + (1 - self.keep) * taken / had
                row[sinks] *= self.keep
        return weights
