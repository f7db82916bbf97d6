"""What every head does for the answer, by one backward pass in place of leaving each head out.

Attribution patching (Nanda; Syed et al., arXiv 2310.10348) towards zero: a factor on each head's output, now 1, is
followed to 0 along its slope. Two things make that slope tell what leaving out does. The score is a logit and not its
logarithm of a probability, which is flat where the answer is sure. And heads of the first layer, which all later
attention reads, change that attention by more than a slope can tell (AtP*, arXiv 2403.00745, section 3): they are left
out one after the other.
"""

from __future__ import annotations

import torch

from headwise.calibrate.subject import model_of
from headwise.lens.interventions import ablated, scaled
from headwise.observe import LayerAttention, Subject
from headwise.seams.transformers.beside import Head


def score(subject: Subject, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """How far the logits of the tokens that follow `places` of `ids [1, n]` are above the mean logit, with
    gradients."""
    logits = subject.logits(ids, places, LayerAttention.full).float()
    right = logits.gather(1, ids[0, places + 1][:, None])[:, 0]
    return (right - logits.mean(-1)).mean()


def slopes(subject: Subject, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What the score loses by each head, [layers, query heads], along the slope of a factor on its output."""
    layers = subject.geometry.layers
    factors = torch.ones(len(layers), max(one.query_heads for one in layers), requires_grad=True)
    by_head = {(i, j): factors[i, j] for i in subject.geometry.attending for j in range(layers[i].query_heads)}
    with torch.enable_grad(), scaled(model_of(subject), by_head), subject.recomputed():
        (found,) = torch.autograd.grad(score(subject, ids, places), factors)
    return found


@torch.no_grad()
def left_out(subject: Subject, ids: torch.Tensor, places: torch.Tensor, head: Head, whole: torch.Tensor) -> float:
    """What the score, `whole` with all heads, loses without this one."""
    with ablated(model_of(subject), [head]):
        return float(whole - score(subject, ids, places))


def attributed(subject: Subject, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """What the score loses by each head, [layers, query heads]: by slopes, and in the first layer by leaving out."""
    found = slopes(subject, ids, places)
    first = subject.geometry.attending[0]
    with torch.no_grad():
        whole = score(subject, ids, places)
    for head in range(subject.geometry.layers[first].query_heads):
        found[first, head] = left_out(subject, ids, places, (first, head), whole)
    return found
