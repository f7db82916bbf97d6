"""Gradient times input."""

from __future__ import annotations

import torch

from headwise.explanations import ExplanationCard, explanation
from headwise.lens.prompt import Prompt

CARD = ExplanationCard(
    title="gradient times input",
    tells="its embedding speaks for the token that is said, to first order",
    signed=True,
    takes="one forward and back",
    paper="Learning Important Features Through Propagating Activation Differences, arXiv 1704.02685, section 2",
    systems=(73,),
)


@explanation("gradient", CARD)
def gradient(prompt: Prompt) -> torch.Tensor:
    """The product of each token's embedding with the gradient of the log-probability."""
    slopes, embedded = prompt.gradients(torch.ones(1))
    return (slopes[0] * embedded).sum(-1)
