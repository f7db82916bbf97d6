"""Attention weights of the last layer, as they are."""

from __future__ import annotations

import torch

from headwise.explanations import ExplanationCard, explanation
from headwise.lens.prompt import Prompt, attention_rows

CARD = ExplanationCard(
    title="attention of the last layer",
    tells="the last token looks at it in the last layer, in the mean over heads",
    signed=False,
    takes="one forward",
    paper="Attention is not Explanation, arXiv 1902.10186, which shows what it does not tell",
)


@explanation("attention", CARD)
def attention(prompt: Prompt) -> torch.Tensor:
    """The last query's probabilities in the last layer that attends."""
    return attention_rows(prompt.layers[-1], prompt.tokens - 1, prompt.tokens)[0].cpu()
