"""Attention of a token to itself."""

from __future__ import annotations

import torch

from headwise.lens.sight import Sight
from headwise.lenses import LensCard, attention_lens

CARD = LensCard(
    title="itself",
    tells="looks at its own token, and so works on each token alone",
    range="0 to 1, the share of its attention, in the mean over all tokens but the first, which sees nothing else",
    paper="What Does BERT Look At? An Analysis of BERT's Attention, arXiv 1906.04341, section 3",
    systems=(206,),
)


@attention_lens("itself", CARD, needs=frozenset({"one"}))
def itself(look: Sight) -> torch.Tensor:
    """The share of attention on a query's own token, by head."""
    return look.to(look.places)[:, 1:].mean(-1)
