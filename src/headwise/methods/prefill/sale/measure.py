"""SALE's thresholds: the largest of each head at which its output stays near dense attention's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from headwise.attention.attend import attend
from headwise.attention.view import View
from headwise.forms import Causal
from headwise.methods.prefill.sale import Sale
from headwise.observe import Found, Material, Observer, Progress, Subject, measure


@dataclass(frozen=True, eq=False)
class _Thresholds(Observer):
    """Halves each head's threshold until the mean error of its output is small enough on what it looks at."""

    error: float
    least: float
    thresholds: torch.Tensor  # [layers, KV heads]

    def look(self, view: View) -> None:
        own = self.thresholds[view.layer]
        for place, head in enumerate(view.heads):
            alone = view.subset((place,))
            dense = attend(alone.queries, alone.keys, alone.values, Causal(), view.scoring).out
            while own[head] > 0 and self._error(alone, dense, float(own[head])) > self.error:
                own[head] = own[head] / 2 if own[head] > self.least else 0.0

    def _error(self, view: View, dense: torch.Tensor, threshold: float) -> float:
        where = Sale(threshold).where(replace(view, granted={**view.granted, "calibration": {}}))
        out = attend(view.queries, view.keys, view.values, where, view.scoring).out
        return float((out - dense).float().abs().sum() / dense.float().abs().sum())


def sale_thresholds(
    subject: Subject, documents: Sequence[torch.Tensor], error: float = 0.05, most: float = 0.064
) -> dict[str, torch.Tensor]:
    """Plan tensor `sale.threshold` [layers, kv_heads]: the largest of most, most / 2, ... at which no document costs a
    head more than `error` of its output (summed absolute difference over summed absolute value); 0, which reads
    everything, where `most` / 64 costs more. documents: ids [1, n] each, of the kind the model will read.

    SALE's calibration (2505.24179, section 4), whose bound is on the absolute difference.
    """
    found = _Thresholds(error, most / 64, torch.full(subject.geometry.by_head, most))
    subject.observe(found, documents)
    return {"sale.threshold": found.thresholds}


@measure("sale", cost=264)
def measured_sale(material: Material, progress: Progress) -> Found:
    """The largest threshold of each head that costs little of its output (SALE)."""
    return {}, sale_thresholds(material.subject, material.documents)
