"""LIME: a linear model of what happens when tokens are taken away."""

from __future__ import annotations

import torch

from headwise.explanations import ExplanationCard, explanation
from headwise.lens.prompt import Prompt

SAMPLES = 256  # prompts with tokens taken away
WIDTH = 0.25  # of the kernel over the cosine distance between masks, as the paper's text explainer has it
RIDGE = 1e-3

CARD = ExplanationCard(
    title="LIME",
    tells="prompts that hold it make the token that is said more likely, as a linear fit near the whole prompt tells",
    signed=True,
    takes="256 forwards, some of them read at once",
    paper="Why Should I Trust You?, arXiv 1602.04938, section 3",
    systems=(73,),
    deviations="of the log-probability; all tokens keep a coefficient, none is chosen; a token taken away is blank",
)


@explanation("lime", CARD)
def lime(prompt: Prompt) -> torch.Tensor:
    """The weights of a ridge regression of the log-probability on which tokens are there."""
    generator = torch.Generator().manual_seed(prompt.seed)
    shares = torch.rand(SAMPLES, 1, generator=generator)  # as many samples of each number of tokens
    there = torch.rand(SAMPLES, prompt.tokens, generator=generator) >= shares
    said = prompt.likelihood(prompt.without(~there)).double()
    masks = torch.cat((there.double(), torch.ones(SAMPLES, 1, dtype=torch.float64)), dim=1)
    near = 1 - (there.double().mean(-1)).sqrt()  # of a mask to the whole prompt
    weight = (-(near**2) / WIDTH**2).exp()[:, None]
    ridge = RIDGE * torch.eye(masks.shape[1], dtype=torch.float64)
    return torch.linalg.solve(masks.T @ (weight * masks) + ridge, masks.T @ (weight[:, 0] * said))[:-1].float()
