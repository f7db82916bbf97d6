"""Attention to the token before."""

from __future__ import annotations

import torch

from headwise.lens.sight import Sight
from headwise.lenses import LensCard, attention_lens

CARD = LensCard(
    title="previous token",
    tells="looks at the token right before its own; induction heads read what such a head wrote",
    range="0 to 1, the share of its attention, in the mean over the tokens that have one before them",
    paper="What Does BERT Look At? An Analysis of BERT's Attention, arXiv 1906.04341, section 3",
    systems=(206,),
)


@attention_lens("previous", CARD, needs=frozenset({"one"}))
def previous(look: Sight) -> torch.Tensor:
    """The share of attention on the token before, by head."""
    return look.to(look.places - 1)[:, 1:].mean(-1)
