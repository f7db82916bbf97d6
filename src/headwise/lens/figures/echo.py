"""Attention to the same token earlier."""

from __future__ import annotations

import torch

from headwise.lens.sight import Sight
from headwise.lenses import LensCard, attention_lens

CARD = LensCard(
    title="echo",
    tells="looks at the last token that was the same as the present one",
    range="0 to 1, the share of its attention, in the mean over the second half of random tokens read twice",
    paper="RazorAttention: Efficient KV Cache Compression Through Retrieval Heads, arXiv 2407.15891, section 3.2",
    systems=(259,),
    deviations="two repeats in place of four, and sliding layers are looked at too",
)


@attention_lens("echo", CARD, random=True, needs=frozenset({"one", "random"}))
def echo(look: Sight) -> torch.Tensor:
    """The share of attention on the last token that was the same, by head."""
    earlier = look.earlier
    return look.to(earlier)[:, (earlier >= 0).to(look.places.device)].mean(-1)
