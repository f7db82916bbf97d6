"""The one place where scores become a choice. Methods score; nobody else calls top-k."""

from __future__ import annotations

import torch

from headwise.errors import HeadwiseError


def check_scores(scores: torch.Tensor) -> None:
    """Refuse NaN scores: a NaN would rank arbitrarily and evict silently."""
    if torch.isnan(scores).any():
        head = int(torch.isnan(scores).any(-1).nonzero()[0, 0])
        raise HeadwiseError(f"scores of head {head} contain NaN; score() must return finite numbers or ±inf")


def choose(scores: torch.Tensor, counts: torch.Tensor | int, protect: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The `counts[h]` best entries of each head, ascending; every protected entry is in, whatever the scores say.

    scores [h, n] (any float dtype, ±inf allowed, NaN refused), counts int or [h], protect bool [h, n]. Protection is
    a mask, not a score: adding to a score loses protected tokens under ties and in bfloat16. When more are protected
    than `counts` allows, the protected ones are kept and nothing else. Ties go to the later entry. Returns one int64
    index tensor per head.
    """
    check_scores(scores)
    heads, stored = scores.shape
    wanted = torch.as_tensor(counts, device=scores.device).expand(heads).clamp(0, stored)
    # Two stable sorts: by time, then by score, then by protection, so each rank is decided exactly.
    order = torch.arange(stored - 1, -1, -1, device=scores.device).expand(heads, stored)
    order = order.gather(1, scores.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    order = order.gather(1, protect.gather(1, order).to(torch.uint8).sort(dim=1, descending=True, stable=True).indices)
    wanted = torch.maximum(wanted, protect.sum(1))
    return tuple(order[head, : int(wanted[head])].sort().values for head in range(heads))
