"""No positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headwise.layer_parts import LayerCard, layer_part
from headwise.layers.pairs import Position


@layer_part("position", "nope")
@dataclass(frozen=True)
class Nope(Position):
    """Places enter by nothing but causality."""

    card: ClassVar[LayerCard] = LayerCard(
        "No positional encoding",
        "The Impact of Positional Encoding on Length Generalization, 2305.19466, section 5",
        "nothing",
        "s_ij = q_i . k_j",
    )
