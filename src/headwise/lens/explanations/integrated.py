"""Integrated gradients."""

from __future__ import annotations

import torch

from headwise.explanations import ExplanationCard, explanation
from headwise.lens.prompt import Prompt

POINTS = 16  # of the path from nothing to the embeddings

CARD = ExplanationCard(
    title="integrated gradients",
    tells="its embedding speaks for the token that is said, summed on a straight path from embeddings of zero",
    signed=True,
    takes="16 forwards and back, read at once",
    paper="Axiomatic Attribution for Deep Networks, arXiv 1703.01365, section 3",
    systems=(73,),
    deviations="midpoints of 16 equal steps",
)


@explanation("integrated", CARD)
def integrated(prompt: Prompt) -> torch.Tensor:
    """The mean gradient on the path, times each token's embedding."""
    slopes, embedded = prompt.gradients((torch.arange(POINTS) + 0.5) / POINTS)
    return (slopes.mean(0) * embedded).sum(-1)
