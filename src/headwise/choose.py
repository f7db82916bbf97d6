"""The one place where scores become a choice. Methods score; nobody else calls top-k."""

from __future__ import annotations

import torch

from headwise.kernels import ops
from headwise.kernels.reference.choice import check_scores


def choose_mask(scores: torch.Tensor, counts: torch.Tensor | int, protect: torch.Tensor) -> torch.Tensor:
    """The `counts[h]` best entries of each head; every protected entry is in, whatever the scores say. Bool [h, n].

    scores [h, n] (any float dtype, ±inf allowed, NaN refused), counts int or [h], protect bool [h, n]. Protection is
    a mask, not a score: adding to a score loses protected tokens under ties and in bfloat16. When more are protected
    than `counts` allows, the protected ones are kept and nothing else. Ties go to the later entry.
    """
    mask = torch.zeros_like(protect)
    for own, chosen in zip(mask, choose(scores, counts, protect), strict=True):
        own[chosen] = True
    return mask


def choose(scores: torch.Tensor, counts: torch.Tensor | int, protect: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `choose_mask`, but one ascending int64 index tensor per head."""
    return ops.choose_blocks(scores, counts, protect, 1, scores.shape[1])


def choose_blocks(
    scores: torch.Tensor, counts: torch.Tensor | int, protect: torch.Tensor, size: int, stored: int
) -> tuple[torch.Tensor, ...]:
    """As `choose`, of blocks of `size` entries: what the chosen ones hold of `stored`; the last block may be short."""
    return ops.choose_blocks(scores, counts, protect, size, stored)


def likeliest(logits: torch.Tensor) -> int:
    """The token of the largest of one place's `logits [..., vocab]`; of equal ones the first, NaN before all.

    By numpy, as torch's own argmax takes ten times as long over bfloat16.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return int(logits.detach().to("cpu", wide).numpy().argmax())


def enough(weights: torch.Tensor, share: float, given: torch.Tensor | None = None) -> torch.Tensor:
    """How many of `weights [h, n]` (0 or more) it takes to reach `share` of their sum, the largest first: int64 [h].

    given: bool [h, n], entries that are in whatever they weigh; they are counted. All n at a share of 1 or more,
    however small the last ones are. NaN is refused. For `choose`, with the given entries protected.
    """
    check_scores(weights)
    weights = weights.double()
    given = torch.zeros_like(weights, dtype=torch.bool) if given is None else given
    if share >= 1:
        return torch.full(weights.shape[:1], weights.shape[1], device=weights.device)
    others = weights.masked_fill(given, 0.0).sort(dim=1, descending=True).values.cumsum(1)
    sure = weights.masked_fill(~given, 0.0).sum(1, keepdim=True)
    reached = torch.cat((sure, sure + others), dim=1)
    short = reached < weights.sum(1, keepdim=True) * share * (1 - 1e-6)  # sums of float32 weights are no more exact
    return (given.sum(1) + short.sum(1)).clamp(max=weights.shape[1])
