"""How far back a head looks."""

from __future__ import annotations

import torch

from headwise.lens.look import Look
from headwise.lenses import LensCard, attention_lens

CARD = LensCard(
    title="mean distance",
    tells="looks far back; heads of low figures can do with a window",
    range="0 to the length of the text, in tokens, in the mean over all tokens",
    paper="Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm Enables Fine-Grained Policy "
    "Optimization, arXiv 2510.13554",
    systems=(315,),
    deviations="the distance by which heads are ranked there; its WAAD and FAI are not here",
)


@attention_lens("distance", CARD)
def distance(look: Look) -> torch.Tensor:
    """The mean distance that a head looks back."""
    return look.distance.mean(-1)
