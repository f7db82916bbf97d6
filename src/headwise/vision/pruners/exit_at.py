"""A control: all image tokens leave before one layer of the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.knobs import Positive
from headwise.pruners import Pruner, PrunerCard, from_layer, register
from headwise.vision.seen import Seen


@register("exit_at")
@dataclass(frozen=True)
class ExitAt(Pruner):
    """layer: of the decoder, before which all image tokens leave; beyond the last one none do."""

    layer: Positive = 4

    card = PrunerCard("Lets all image tokens leave before one layer", "none: a control of dyvte")
    everything = "exit_at(layer=1000)"

    def stay(self, seen: Seen) -> torch.Tensor | None:
        return torch.zeros(len(seen.places), dtype=torch.bool) if seen.layer == self.layer else None

    def counts(self, images: int, layers: int) -> list[int]:
        return from_layer(self.layer, 0, images, layers)
