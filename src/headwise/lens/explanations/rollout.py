"""Attention rollout: the maps of all layers, multiplied."""

from __future__ import annotations

import torch

from headwise.explanations import ExplanationCard, explanation
from headwise.lens.prompt import BLOCK, Prompt, attention_rows
from headwise.observe import LayerAttention

CARD = ExplanationCard(
    title="attention rollout",
    tells="what stands at the last token comes from it, where each layer passes on half of what it is given and half "
    "of what its heads look at",
    signed=False,
    takes="one forward, in memory linear in the prompt",
    paper="Quantifying Attention Flow in Transformers, arXiv 2005.00928, section 3",
    systems=(213,),
    deviations="the last token's row alone, from the last layer down, so that no map is held whole; rows that a sink "
    "takes a share of are made to sum to 1",
)


@explanation("rollout", CARD)
def rollout(prompt: Prompt) -> torch.Tensor:
    """The last row of the product of 0.5 (A + I) over layers; it sums to 1."""
    row = torch.zeros(prompt.tokens, dtype=torch.float64)
    row[-1] = 1.0
    for one in reversed(prompt.layers):
        row = 0.5 * row + 0.5 * passed_down(one, row)
    return row.float()


def passed_down(one: LayerAttention, row: torch.Tensor) -> torch.Tensor:
    """`row [n]` times a layer's map, the mean over heads: float64 [n], some queries of the map at a time."""
    found = torch.zeros_like(row)
    for start in range(0, len(row), BLOCK):
        stop = min(start + BLOCK, len(row))
        rows = attention_rows(one, start, stop).double().cpu()
        found += row[start:stop] @ (rows / rows.sum(-1, keepdim=True))
    return found
