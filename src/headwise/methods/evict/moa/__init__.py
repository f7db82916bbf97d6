"""Every head has a span of its own, which grows with the context at its own rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from headwise.knobs import NonNegative
from headwise.methods.evict import Evict, Latest
from headwise.registry import CalibrationTensor, Card, register
from headwise.shapes import Amount


@register("evict", "moa")
@dataclass(frozen=True)
class MoA(Latest):
    """A head keeps its first `sinks` tokens and the latest alpha + beta * N of N, by its own alpha and beta.

    budget: share of the tokens or number of tokens that a head keeps where no calibration tells its span.
    sinks, recent: tokens always kept.
    """

    sinks: NonNegative = 64

    calibrates = {"spans": CalibrationTensor("2", "the span: alpha in tokens, beta as a share of the context", "spans")}
    card = Card(
        title="MoA: a span for every head",
        paper="MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression, arXiv 2406.14909",
        systems=(3,),
        calibrated=True,
        frees_memory=True,
        chunking="exact",
        forgets="everything between the sinks and the head's span",
        deviations="without a calibration (`moa.spans`) every head has the budget's span; query heads of one KV head "
        "share a span; spans are cut at tokens, not at blocks; losses are summed by size, as in the released code, not "
        "with the signs of the paper's formula",
    )

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Evict | None:
        """The head's own span, of [layers, KV heads, 2]: alpha in tokens, beta as a share. Beta 1 keeps everything."""
        if "moa.spans" not in calibration:
            return self
        alpha, beta = calibration["moa.spans"][layer, head].tolist()
        return None if beta >= 1 else replace(self, budget=Amount(share=beta, tokens=round(alpha) + self.sinks))
