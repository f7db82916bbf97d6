"""How far back a head looks."""

from __future__ import annotations

import torch

from headwise.lens.sight import Sight
from headwise.lenses import LensCard, attention_lens

CARD = LensCard(
    title="mean distance",
    tells="looks far away, in a decoder back; heads of low figures can do with a window",
    range="0 to the length of the text, in tokens, or of a picture's diagonal, in patches, in the mean over all tokens",
    paper="Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm Enables Fine-Grained Policy "
    "Optimization, arXiv 2510.13554",
    systems=(315,),
    deviations="the distance by which heads are ranked there; its WAAD and FAI are not here",
)


@attention_lens("distance", CARD, needs=frozenset({"one"}))
def distance(look: Sight) -> torch.Tensor:
    """The mean distance that a head looks back."""
    return look.distance.nanmean(-1)
