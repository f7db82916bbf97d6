"""Retrieval heads keep everything, streaming heads sinks and recent tokens; trained gates tell which head is which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from headwise.knobs import Budget, NonNegative, Share
from headwise.methods import among_best
from headwise.methods.evict import Evict, Latest
from headwise.registry import CalibrationTensor, Card, register


@register("evict", "duo")
@dataclass(frozen=True)
class Duo(Latest):
    """Streaming heads keep their first `sinks` tokens and, of the rest, the latest that the budget holds.

    budget: share of the tokens or number of tokens that a streaming head keeps; 320 are the paper's 64 sinks and 256
    recent ones. sinks, recent: tokens always kept. sparsity: share of the model's KV heads that stream, those of the
    lowest gates.
    """

    budget: Budget = 320
    sinks: NonNegative = 64
    recent: NonNegative = 256
    sparsity: Share = 0.5

    calibrates = {"gates": CalibrationTensor("", "how much of its full attention a head needs, 0 to 1", "gates")}
    card = Card(
        title="DuoAttention: retrieval heads and streaming heads",
        paper="DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads, arXiv 2410.10819",
        systems=(64,),
        calibrated=True,
        frees_memory=True,
        chunking="exact",
        forgets="in streaming heads, everything between the sinks and the recent window",
        deviations="without a calibration (`duo.gates`) every head streams; keys keep their true positions",
    )

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Evict | None:
        """Nothing is evicted from the heads of the highest gates [layers, KV heads]."""
        return None if among_best(calibration.get("duo.gates"), 1 - self.sparsity, layer, head) else self
