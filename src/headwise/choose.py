"""The one place where scores become a choice. Methods score; nobody else calls top-k."""

from __future__ import annotations

import torch

from headwise.errors import HeadwiseError
from headwise.kernels.native import topk


def check_scores(scores: torch.Tensor) -> None:
    """Refuse NaN scores [h, n]: a NaN would rank arbitrarily and evict silently."""
    if not scores.numel():
        return
    broken = torch.isnan(scores.amax(-1))  # a maximum of anything with a NaN is NaN
    if broken.any():
        raise HeadwiseError(
            f"scores of head {int(broken.nonzero()[0, 0])} contain NaN; score() must return finite numbers or ±inf"
        )


def choose_mask(scores: torch.Tensor, counts: torch.Tensor | int, protect: torch.Tensor) -> torch.Tensor:
    """The `counts[h]` best entries of each head; every protected entry is in, whatever the scores say. Bool [h, n].

    scores [h, n] (any float dtype, ±inf allowed, NaN refused), counts int or [h], protect bool [h, n]. Protection is
    a mask, not a score: adding to a score loses protected tokens under ties and in bfloat16. When more are protected
    than `counts` allows, the protected ones are kept and nothing else. Ties go to the later entry.
    """
    check_scores(scores)
    return _best(scores, _wanted(scores, counts, protect), protect)


def choose(scores: torch.Tensor, counts: torch.Tensor | int, protect: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `choose_mask`, but one ascending int64 index tensor per head; quicker where few of many are chosen."""
    return choose_blocks(scores, counts, protect, 1, scores.shape[1])


def choose_blocks(
    scores: torch.Tensor, counts: torch.Tensor | int, protect: torch.Tensor, size: int, stored: int
) -> tuple[torch.Tensor, ...]:
    """As `choose`, of blocks of `size` entries: what the chosen ones hold of `stored`; the last block may be short.

    The native kernel gives what torch would, entry for entry; torch takes what the kernel does not, and names a NaN.
    """
    if topk.takes(scores):
        chosen = topk.topk(scores, counts, protect, size, stored)
        if chosen is not None:
            return chosen
    check_scores(scores)
    inside = torch.arange(size, device=scores.device)
    entries = ((one[:, None] * size + inside).flatten() for one in _chosen(scores, counts, protect))
    return tuple(one[one < stored] for one in entries)


def _chosen(scores: torch.Tensor, counts: torch.Tensor | int, protect: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`choose` by torch, of scores without NaN."""
    wanted = _wanted(scores, counts, protect)
    hopeful = _hopeful(scores, wanted)
    if hopeful is None:
        return tuple(mask.nonzero()[:, 0] for mask in _best(scores, wanted, protect))
    stored = scores.shape[1]
    flat = (hopeful | protect).flatten().nonzero()[:, 0]
    lengths = torch.bincount(flat // stored, minlength=len(scores))
    widest = int(lengths.max())
    # side by side [h, widest], filled up in front: between equals the later entry wins
    real = torch.arange(widest, 0, -1, device=flat.device) <= lengths[:, None]
    own = scores.new_full(real.shape, -torch.inf)
    sure = torch.zeros_like(real)
    own[real], sure[real] = scores.flatten()[flat], protect.flatten()[flat]
    mask = _best(own, wanted, sure)
    return (flat[mask[real]] % stored).split(mask.sum(1).tolist())


def _wanted(scores: torch.Tensor, counts: torch.Tensor | int, protect: torch.Tensor) -> torch.Tensor:
    """How many entries each head gets, int64 [h]: the protected ones in any case, no more than there are."""
    heads, stored = scores.shape
    wanted = torch.as_tensor(counts, device=scores.device).expand(heads).clamp(0, stored)
    return torch.maximum(wanted, protect.sum(1))


def _best(scores: torch.Tensor, wanted: torch.Tensor, protect: torch.Tensor) -> torch.Tensor:
    """Bool [h, n]: the protected entries and the best others, `wanted [h]` together, between equals the later."""
    room = wanted - protect.sum(1)
    most = int(room.max()) if room.numel() else 0
    if most == 0:
        return protect.clone()
    free = scores.masked_fill(protect, -torch.inf)
    line = _ranked(free, room)
    above = free > line
    equal = (scores == line) & ~protect
    short = (room - above.sum(1))[:, None]
    last = equal.flip(1).cumsum(1).flip(1) <= short
    return protect | ((above | (equal & last)) & (room > 0)[:, None])


def _hopeful(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor | None:
    """Bool [h, n], True for the `wanted [h]` best entries of each head and some others; None where these are too many.

    As many blocks of entries as are wanted have a maximum at or above some line, so the wanted ones are at or above it.
    """
    most = int(wanted.max()) if wanted.numel() else 0
    size = scores.shape[1] // max(1, 2 * most)
    if size < 2 or not most:
        return None
    maxima = scores[:, : scores.shape[1] // size * size].unflatten(1, (size, -1)).amax(1)
    return scores >= _ranked(maxima, wanted)


def _ranked(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """The ranks[h]-th highest score of each head, [h, 1]; the highest for a rank of 0."""
    least, most = (int(x) for x in ranks.clamp(min=1).aminmax())
    if least == most:
        return scores.kthvalue(scores.shape[1] - most + 1, dim=1, keepdim=True).values
    return scores.topk(most, dim=1).values.gather(1, (ranks - 1).clamp(min=0)[:, None])


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
