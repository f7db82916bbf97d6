"""Leaving out one token after the other."""

from __future__ import annotations

import torch

from headwise.explanations import ExplanationCard, explanation
from headwise.lens.prompt import Prompt

CARD = ExplanationCard(
    title="leaving out",
    tells="without it, a blank in its place, the model would have said this token less likely",
    signed=True,
    takes="a forward for each token",
    paper="Understanding Neural Networks through Representation Erasure, arXiv 1612.08220, on the importance of words",
    deviations="the token is made blank and not deleted, so that the others stay where they stood",
)


@explanation("leave_out", CARD)
def leave_out(prompt: Prompt) -> torch.Tensor:
    """By how much the token's log-probability falls, in nats, without each one."""
    whole = prompt.likelihood(prompt.ids)
    return whole - prompt.likelihood(prompt.without(torch.eye(prompt.tokens, dtype=torch.bool)))
