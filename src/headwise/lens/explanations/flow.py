"""Attention flow: how much can pass from the last token down to each of the prompt's."""

from __future__ import annotations

import torch

from headwise.errors import ContextError, HeadwiseError
from headwise.explanations import ExplanationCard, explanation
from headwise.lens.prompt import Prompt, attention_rows

MOST_TOKENS = 256  # of a prompt: a flow network has an edge for every pair of tokens in every layer
UNIT = 2**24  # capacities are whole numbers of parts of a row

CARD = ExplanationCard(
    title="attention flow",
    tells="so much can flow from the last token down to it, through layers whose maps are the capacities",
    signed=False,
    takes="one forward, and a maximum flow for each token; a network of layers x tokens x tokens, so that prompts have "
    "256 tokens at most",
    paper="Quantifying Attention Flow in Transformers, arXiv 2005.00928, section 3",
    systems=(213,),
    deviations="capacities in whole parts of 2^-24, rounded down, as scipy's maximum flow asks",
)


@explanation("flow", CARD)
def flow(prompt: Prompt) -> torch.Tensor:
    """The maximum flow from the last token's last state to each token, of capacities 0.5 (A + I)."""
    try:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_flow
    except ImportError:
        raise HeadwiseError("attention flow is found by scipy; pip install 'headwise[lens]'") from None
    n = prompt.tokens
    if n > MOST_TOKENS:
        raise ContextError(f"attention flow takes prompts of {MOST_TOKENS} tokens at most, this has {n}; take rollout")
    maps = [0.5 * attention_rows(one, 0, n).double().cpu() + 0.5 * torch.eye(n) for one in prompt.layers]
    depth = len(maps)
    rows, columns, capacity = [], [], []
    for layer, one in enumerate(maps):
        above, below = one.nonzero(as_tuple=True)
        rows.append((layer + 1) * n + above)
        columns.append(layer * n + below)
        capacity.append((one[above, below] * UNIT).int())
    edges = (torch.cat(capacity).numpy(), (torch.cat(rows).numpy(), torch.cat(columns).numpy()))
    graph = csr_array(edges, shape=((depth + 1) * n,) * 2)
    top = (depth + 1) * n - 1
    return torch.tensor([float(maximum_flow(graph, top, token).flow_value) for token in range(n)]) / UNIT
