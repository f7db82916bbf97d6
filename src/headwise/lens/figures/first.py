"""Attention to the first token."""

from __future__ import annotations

import torch

from headwise.lens.sight import Sight
from headwise.lenses import LensCard, attention_lens

CARD = LensCard(
    title="first token (sink)",
    tells="rests on the first token, a place to put attention that is not needed elsewhere",
    range="0 to 1, the share of its attention, in the mean over all tokens but the first",
    paper="When Attention Sink Emerges in Language Models: An Empirical View, arXiv 2410.10781, on measuring sinks",
    systems=(75,),
    deviations="the paper counts heads above 0.3 over many texts; this is the mean itself, over one text",
)


@attention_lens("first", CARD)
def first(look: Sight) -> torch.Tensor:
    """The share of attention on the first token, by head."""
    return look.to(torch.zeros_like(look.places))[:, 1:].mean(-1)
