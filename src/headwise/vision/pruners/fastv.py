"""FastV (Chen et al. 2024): image tokens that the last token hardly attends to leave after a few layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.choose import choose_mask
from headwise.knobs import Positive, PositiveShare
from headwise.pruners import Pruner, PrunerCard, from_layer, left, register
from headwise.vision.seen import Seen


@register("fastv")
@dataclass(frozen=True)
class FastV(Pruner):
    """keep: the share of image tokens that stay, by the last token's attention in the layer before. layer: of the
    decoder, before which the others leave; 2 is the paper's."""

    keep: PositiveShare = 0.25
    layer: Positive = 2

    card = PrunerCard(
        "Leaves out image tokens that the prompt's last token hardly attends to",
        "An Image is Worth 1/2 Tokens After Layer 2, ECCV 2024, arXiv 2403.06764, section 4",
    )
    everything = "fastv(keep=1.0)"

    def stay(self, seen: Seen) -> torch.Tensor | None:
        count = len(seen.places)
        if seen.layer != self.layer or left(self.keep, count) == count:
            return None
        return choose_mask(seen.weights[None], left(self.keep, count), torch.zeros(1, count, dtype=torch.bool))[0]

    def counts(self, images: int, layers: int) -> list[int]:
        return from_layer(self.layer, left(self.keep, images), images, layers)
