"""Streaming heads read the prompt through sinks and a recent window; retrieval heads read all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from headwise.knobs import NonNegative, Positive, Share
from headwise.methods import among_best
from headwise.methods.prefill import Prefill, Windowed
from headwise.registry import Card, register


@register("prefill", "duo_prefill")
@dataclass(frozen=True)
class DuoPrefill(Windowed):
    """sinks: first tokens that every query of a streaming head reads. window: latest tokens that it reads, itself
    included. sparsity: share of the model's KV heads that stream, those of the lowest gates."""

    sinks: NonNegative = 64
    window: Positive = 256
    sparsity: Share = 0.5

    borrows = ("duo.gates",)
    card = Card(
        title="DuoAttention's prefill of streaming heads",
        paper="DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads, arXiv 2410.10819",
        systems=(64,),
        phase="prefill",
        calibrated=True,
        chunking="exact",
        forgets="nothing is dropped, but in streaming heads prompt tokens outside sinks and window are not read",
        deviations="without a calibration (`duo.gates`) every head streams; each query has its own window, where the "
        "paper's code reads blocks",
    )

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Prefill | None:
        """The heads of the highest gates [layers, KV heads] read everything."""
        return None if among_best(calibration.get("duo.gates"), 1 - self.sparsity, layer, head) else self
