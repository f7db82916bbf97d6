"""Every head reads the prompt through a window of its own, which grows with the context at its own rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from headwise.knobs import NonNegative, Positive, Share
from headwise.methods.prefill import Prefill, Windowed
from headwise.registry import Card, register


@register("prefill", "moa_prefill")
@dataclass(frozen=True)
class MoAPrefill(Windowed):
    """sinks: first tokens that every query reads. window: latest tokens that it reads, itself included, besides a share
    `beta` of the tokens seen. A calibration gives every head its own window and beta."""

    sinks: NonNegative = 64
    window: Positive = 1024
    beta: Share = 0.0

    borrows = ("moa.spans",)
    card = Card(
        title="MoA's prefill",
        paper="MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression, arXiv 2406.14909",
        systems=(3,),
        phase="prefill",
        calibrated=True,
        chunking="approximate",
        forgets="nothing is dropped, but prompt tokens between the sinks and the head's span are not read",
        deviations="without a calibration (`moa.spans`) every head has the same window; in chunks a window is as long "
        "as the tokens seen so far make it; query heads of one KV head share a span",
    )

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Prefill | None:
        """The head's own window, of [layers, KV heads, 2]: alpha in tokens, beta as a share. Beta 1 reads all."""
        if "moa.spans" not in calibration:
            return self
        alpha, beta = calibration["moa.spans"][layer, head].tolist()
        return None if beta >= 1 else replace(self, window=max(1, round(alpha)), beta=beta)

    def reach(self, seen: int) -> int:
        """The window with its share of the tokens seen."""
        return self.window + round(self.beta * seen)
