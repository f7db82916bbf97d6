"""Conscious Gaze: where image and text say together what neither says alone, the newest token looks at the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le

from headwise.decoders import Decoder, DecoderCard, register
from headwise.faithful.looks import Looks
from headwise.knobs import Share, Weight

Nats = Annotated[float, Ge(-1e9), Le(1e9)]


@register("conscious_gaze")
@dataclass(frozen=True)
class ConsciousGaze(Decoder):
    """Measures how much more the best token's log-probability owes to image and text together than to each alone; above
    a threshold the newest token is computed once more with scores of the image raised in middle layers.

    bias: what is added to these scores; exp(bias) times the weight. threshold: in nats. early, late: the shares of
    layers at which the middle ones begin and end.
    """

    bias: Weight = 1.0
    threshold: Nats = 0.0
    early: Share = 0.3
    late: Share = 0.8

    card = DecoderCard(
        title="Steering to the image where it is needed",
        paper="Conscious Gaze: Adaptive Attention Mechanisms for Hallucination Mitigation in Vision-Language Models, "
        "arXiv 2512.05546, section 3",
        costs="three passes over the newest token, over the same cache, and one more where it is steered",
        deviations="made from the paper's outline, as no official code was found: the rule of reorientation is an "
        "additive bias on all heads of the middle layers. A modality is masked for the newest token alone: what text "
        "tokens have read of the image before stays in their keys and values",
        systems=(147,),
    )
    needs = frozenset({"image", "again"})
    neutral = "conscious_gaze(bias=0.0)"

    def conflict(self) -> str | None:
        if self.late < self.early:
            return f"late={self.late:g} comes before early={self.early:g}; give late at least early"
        return None

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        logs = logits.log_softmax(-1)
        needed = self.synergy(logs, looks) > self.threshold
        if self.bias == 0 or not bool(needed.any()):
            return logs
        return torch.where(needed[:, None], looks.raised(self.scores(looks)).log_softmax(-1), logs)

    def synergy(self, logs: torch.Tensor, looks: Looks) -> torch.Tensor:
        """Of each row's best token, in nats [b]: what both modalities give beyond the sum of each."""
        image = looks.image
        best = logs.argmax(-1, keepdim=True)
        alone = [looks.hidden(dict.fromkeys(looks.geometry.attending, places)).log_softmax(-1)
                 for places in (~image, image, torch.ones_like(image))]  # fmt: skip
        both, sight, text, none = (one.gather(-1, best)[:, 0] for one in (logs, *alone))
        return both - sight - text + none

    def scores(self, looks: Looks) -> dict[int, torch.Tensor]:
        """By middle layer, what is added to the scores of places [b, H, n]."""
        image = looks.image
        layers = looks.geometry.layers
        middle = range(round(self.early * len(layers)), round(self.late * len(layers)))
        return {
            layer: self.bias * image[:, None].expand(-1, layers[layer].query_heads, -1).float()
            for layer in middle
            if layer in looks.geometry.attending
        }
