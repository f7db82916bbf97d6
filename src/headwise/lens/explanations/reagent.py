"""ReAGent: tokens are replaced by chance, and those whose loss costs most are told."""

from __future__ import annotations

import torch

from headwise.explanations import ExplanationCard, explanation
from headwise.lens.prompt import Prompt

SHARE = 0.3  # of the tokens that are replaced at a time
TOP = 0.3  # of the tokens that must do alone, most important first
LIKELY = 3  # most likely tokens that the explained one must be among then
ROUNDS, ROWS = 40, 16  # rounds at most, and replacements of a round, read at once

CARD = ExplanationCard(
    title="ReAGent",
    tells="replaced by chance, with others, it takes the token that is said with it; no gradients, no attention",
    signed=False,
    takes="17 forwards a round, 40 rounds at most",
    paper="ReAGent: Towards A Model-agnostic Feature Attribution Method for Generative Language Models, arXiv "
    "2402.00794, section 3 and algorithm 1",
    systems=(78,),
    deviations="replacements are drawn from the prompt's own tokens and not by RoBERTa; 16 replacements a round, read "
    "at once, each of which moves the importance by its drop of probability over their number; no fewer than 8 rounds; "
    "logits begin at 0 and not by chance",
)


@explanation("reagent", CARD)
def reagent(prompt: Prompt) -> torch.Tensor:
    """Importance [n] that sums to 1."""
    generator = torch.Generator().manual_seed(prompt.seed)
    tokens, n = prompt.ids[0].cpu(), prompt.tokens
    importance = torch.zeros(n, dtype=torch.float64)
    whole = prompt.likelihood(prompt.ids).exp().double()
    for number in range(ROUNDS):
        taken = torch.rand(ROWS, n, generator=generator).argsort(1) < max(1, round(SHARE * n))
        drawn = tokens[torch.randint(n, (ROWS, n), generator=generator)]
        drop = whole - prompt.likelihood(torch.where(taken, drawn, tokens)).exp().double()
        importance += (torch.where(taken, drop[:, None], -drop[:, None])).sum(0) / ROWS
        if number >= 7 and _enough(prompt, importance, generator):
            break
    return importance.softmax(0).float()


def _enough(prompt: Prompt, importance: torch.Tensor, generator: torch.Generator) -> bool:
    """Whether the most important tokens alone, all others replaced, keep the token among the likeliest."""
    tokens, n = prompt.ids[0].cpu(), prompt.tokens
    kept = torch.zeros(n, dtype=torch.bool)
    kept[importance.topk(max(1, round(TOP * n))).indices] = True
    drawn = tokens[torch.randint(n, (n,), generator=generator)]
    logits = prompt.logits(torch.where(kept, tokens, drawn)[None])[0]
    return bool((logits > logits[prompt.target]).sum() < LIKELY)
