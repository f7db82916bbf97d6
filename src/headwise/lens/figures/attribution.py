"""What the text's next tokens would lose without each head, by one backward pass and the first layer's heads."""

from __future__ import annotations

import torch

from headwise.lens.attribution import attributed
from headwise.lens.losses import MOST_PLACES, MOST_TOKENS, spread
from headwise.lens.scene import Scene
from headwise.lenses import LensCard, Progress, model_lens

CARD = LensCard(
    title="attribution",
    tells="raises the next token of this text above others, told without leaving each head out",
    range="logits above the mean, of either sign, in the mean over up to 256 places",
    paper="Attribution Patching Outperforms Automated Circuit Discovery, arXiv 2310.10348, on attribution patching",
    deviations="towards zero and not another prompt; the first layer's heads are left out, as AtP* (2403.00745) "
    "finds their slopes to mislead",
)


@model_lens("attribution", CARD)
def attribution(scene: Scene, progress: Progress) -> torch.Tensor:
    """What the score loses by each head."""
    tokens = min(scene.text.tokens, MOST_TOKENS)
    ids = scene.text.ids[:, :tokens].to(scene.subject.device)
    return attributed(scene.subject, ids, spread(tokens - 1, MOST_PLACES))
