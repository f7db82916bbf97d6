"""DoLa: against what the model would have said after fewer of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from headwise.decoders import Decoder, DecoderCard, register
from headwise.faithful.looks import Looks
from headwise.faithful.scores import divergence, plausible
from headwise.knobs import PositiveShare, Weight


@register("dola")
@dataclass(frozen=True)
class Dola(Decoder):
    """Takes from the model's log-probabilities those of the early exit that differs most from them, among tokens that
    are plausible.

    alpha: how much of the early exit's is taken off. layers: whether exits of the lower or the upper half are asked,
    every second. plausible: the share of the best token's probability below which no token is chosen.
    """

    alpha: Weight = 1.0
    layers: Literal["low", "high"] = "low"
    plausible: PositiveShare = 0.1

    card = DecoderCard(
        title="Decoding by contrasting layers",
        paper="DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models, arXiv 2309.03883, "
        "section 2",
        costs="no pass: the output embedding once for each exit",
        deviations="early states go through the model's final norm, as the last one does, which the official code "
        "leaves out; the divergence is Jensen-Shannon's by its definition; alpha is ours, and 1 in the paper",
    )
    needs = frozenset({"exits"})
    neutral = "dola(alpha=0.0)"

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        logs, exits = logits.log_softmax(-1), looks.exits(self._counts(len(looks.geometry.layers)))
        chosen = divergence(logs[:, None], exits).argmax(1)
        early = exits[torch.arange(len(logs), device=logs.device), chosen]
        left = logs - self.alpha * early
        return left.masked_fill(~plausible(logs, self.plausible), -torch.inf).log_softmax(-1)

    def _counts(self, layers: int) -> list[int]:
        """After how many layers exits are asked."""
        half = max(2, layers // 2)
        return list(range(1, half, 2)) if self.layers == "low" else list(range(half, layers, 2)) or [layers - 1]
