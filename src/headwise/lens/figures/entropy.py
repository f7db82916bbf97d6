"""How widely a head spreads its attention."""

from __future__ import annotations

import torch

from headwise.lens.sight import Sight
from headwise.lenses import LensCard, attention_lens

CARD = LensCard(
    title="entropy",
    tells="spreads its attention over many tokens; at 0 it looks at a single one",
    range="0 to the logarithm of the length, in nats, in the mean over all tokens",
    paper="What Does BERT Look At? An Analysis of BERT's Attention, arXiv 1906.04341, section 3",
    systems=(206,),
)


@attention_lens("entropy", CARD)
def entropy(look: Sight) -> torch.Tensor:
    """The mean entropy of a head's attention."""
    return look.entropy.mean(-1)
