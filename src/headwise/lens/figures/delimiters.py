"""Attention to punctuation and line ends."""

from __future__ import annotations

import torch

from headwise.lens.sight import Sight
from headwise.lenses import LensCard, attention_lens

CARD = LensCard(
    title="delimiters",
    tells="looks at punctuation, line ends and tokens that stand for no text, where sentences are summed up",
    range="0 to 1, the share of its attention, in the mean over all tokens",
    paper="What Does BERT Look At? An Analysis of BERT's Attention, arXiv 1906.04341, section 3",
    systems=(206,),
    deviations="the paper's delimiters are BERT's [SEP], full stops and commas; here tokens without a letter or digit",
)


@attention_lens("delimiters", CARD, needs=frozenset({"words"}))
def delimiters(look: Sight) -> torch.Tensor:
    """The share of attention on delimiters, by head."""
    return look.on_delimiters.mean(-1)
