"""Ships: the heads that a model's next word rests on (arXiv 2410.13708, section 3).

A head is taken away by turning its queries nearly to nothing, so that it looks at all that it sees alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch

from headwise.observe import LayerAttention, Subject
from headwise.seams.transformers.beside import Head, check_heads

NOTHING = 1e-5  # what queries are multiplied by, as the paper has it


def evenly(heads: Collection[Head]) -> Callable[[LayerAttention], torch.Tensor]:
    """Attention in which these heads look at all that they see alike."""

    def attention(one: LayerAttention) -> torch.Tensor:
        own = [head for layer, head in heads if layer == one.layer]
        if not own:
            return one.full()
        q = one.q.clone()
        q[:, own] *= NOTHING
        return replace(one, q=q).full()

    return attention


def heads_of(subject: Subject) -> list[Head]:
    """All heads, layer by layer."""
    layers = subject.geometry.layers
    return [(layer, head) for layer in subject.geometry.attending for head in range(layers[layer].query_heads)]


@torch.no_grad()
def first_words(subject: Subject, prompts: Sequence[torch.Tensor], heads: Collection[Head] = ()) -> torch.Tensor:
    """Log-probabilities [prompts, vocabulary] of the token after each of `prompts`, ids [1, n], where these heads look
    at all alike."""
    check_heads(subject.geometry, heads)
    told = [
        subject.logits(ids.to(subject.device), torch.tensor([ids.shape[1] - 1]), evenly(heads))[0] for ids in prompts
    ]
    return torch.stack(told).float().log_softmax(-1)


def ships(whole: torch.Tensor, without: torch.Tensor) -> float:
    """The divergence of the distributions without a head from those of the whole model, both log [prompts,
    vocabulary]: the mean over prompts, in nats."""
    return float((whole.exp() * (whole - without)).sum(-1).mean())
