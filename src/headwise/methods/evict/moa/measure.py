"""MoA's measure: losses of shorter spans at several lengths, and the spans that a mean density buys."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headwise.methods.evict.moa.choice import check_ladder, choose_spans
from headwise.methods.evict.moa.losses import span_losses
from headwise.observe import Found, Material, Progress, Recall, Subject, check_recalls, measure


def sensitivities(subject: Subject, recalls: Sequence[Recall], progress: Progress | None = None) -> list[torch.Tensor]:
    """`span_losses` of each of the recalls, of different lengths, with the dense model's own answers."""
    check_recalls(recalls)
    found = []
    for done, recall in enumerate(recalls):
        found.append(span_losses(subject, subject.own_answers(recall)))
        if progress is not None:
            progress(done + 1, len(recalls))
    return found


def _check(material: Material) -> None:
    check_ladder([recall.ids.shape[1] for recall in material.ladder], material.density)


@measure("spans", cost=167, check=_check)
def measured_spans(material: Material, progress: Progress) -> Found:
    """Loss of shorter spans, and the spans of least loss (MoA)."""
    lengths = [recall.ids.shape[1] for recall in material.ladder]
    measured = sensitivities(material.subject, material.ladder, progress)
    there = material.subject.geometry.there
    spans = torch.zeros(*there.shape, 2)
    spans[there] = choose_spans([one[there][None] for one in measured], lengths, material.density)[0]
    losses = {f"span_losses_{length}": one for length, one in zip(lengths, measured, strict=True)}
    return {"lengths": lengths, "density": material.density}, {"moa.spans": spans, **losses}
