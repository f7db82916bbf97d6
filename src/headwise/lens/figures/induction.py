"""Attention to what came next the last time."""

from __future__ import annotations

import torch

from headwise.lens.sight import Sight
from headwise.lenses import LensCard, attention_lens

CARD = LensCard(
    title="induction",
    tells="looks at the token that followed the last time the present one was read, and so foretells it again",
    range="0 to 1, the share of its attention, in the mean over the second half of random tokens read twice",
    paper="In-context Learning and Induction Heads, Olsson et al. 2022, arXiv 2209.11895, prefix matching",
    deviations="RazorAttention's score of this name, which `headwise calibrate` takes, is of the last of four repeats",
)


@attention_lens("induction", CARD, random=True, needs=frozenset({"one", "random", "next"}))
def induction(look: Sight) -> torch.Tensor:
    """The share of attention on the token after the last token that was the same, by head."""
    earlier = look.earlier
    after = torch.where(earlier >= 0, earlier + 1, -1)
    return look.to(after)[:, (earlier >= 0).to(look.places.device)].mean(-1)
