"""A control: image tokens that chance leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.choose import choose_mask
from headwise.knobs import NonNegative, PositiveShare
from headwise.pruners import Pruner, PrunerCard, from_layer, left, register
from headwise.vision.seen import Seen


@register("random_tokens")
@dataclass(frozen=True)
class RandomTokens(Pruner):
    """keep: the share of image tokens that stay. layer: of the decoder, before which the others leave."""

    keep: PositiveShare = 0.25
    layer: NonNegative = 0

    card = PrunerCard("Leaves out image tokens by chance", "none: a control")
    everything = "random_tokens(keep=1.0)"

    def stay(self, seen: Seen) -> torch.Tensor | None:
        count = len(seen.places)
        if seen.layer != self.layer or left(self.keep, count) == count:
            return None
        drawn = torch.rand(1, count, generator=torch.Generator().manual_seed(seen.seed))
        return choose_mask(drawn, left(self.keep, count), torch.zeros(1, count, dtype=torch.bool))[0]

    def counts(self, images: int, layers: int) -> list[int]:
        return from_layer(self.layer, left(self.keep, images), images, layers)
