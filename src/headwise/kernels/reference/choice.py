"""The best entries of every row, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.errors import HeadwiseError


def choose_blocks(scores: Tensor, counts: Tensor | int, protect: Tensor, size: int, stored: int) -> tuple[Tensor, ...]:
    """Of each row of `scores [h, n]` the `protect`ed entries and the best others, `counts` together, of blocks of
    `size` entries: ascending int64 lists; between equals the later."""
    check_scores(scores)
    inside = torch.arange(size, device=scores.device)
    entries = ((one[:, None] * size + inside).flatten() for one in _chosen(scores, counts, protect))
    return tuple(one[one < stored] for one in entries)


def check_scores(scores: Tensor) -> None:
    """Refuse NaN scores [h, n]: a NaN would rank arbitrarily and evict silently."""
    if not scores.numel():
        return
    broken = torch.isnan(scores.amax(-1))  # a maximum of anything with a NaN is NaN
    if broken.any():
        raise HeadwiseError(
            f"scores of head {int(broken.nonzero()[0, 0])} contain NaN; score() must return finite numbers or ±inf"
        )


def _chosen(scores: Tensor, counts: Tensor | int, protect: Tensor) -> tuple[Tensor, ...]:
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


def _wanted(scores: Tensor, counts: Tensor | int, protect: Tensor) -> Tensor:
    """How many entries each head gets, int64 [h]: the protected ones in any case, no more than there are."""
    heads, stored = scores.shape
    wanted = torch.as_tensor(counts, device=scores.device).expand(heads).clamp(0, stored)
    return torch.maximum(wanted, protect.sum(1))


def _best(scores: Tensor, wanted: Tensor, protect: Tensor) -> Tensor:
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


def _hopeful(scores: Tensor, wanted: Tensor) -> Tensor | None:
    """Bool [h, n], True for the `wanted [h]` best entries of each head and some others; None where these are too many.

    As many blocks of entries as are wanted have a maximum at or above some line, so the wanted ones are at or above it.
    """
    most = int(wanted.max()) if wanted.numel() else 0
    size = scores.shape[1] // max(1, 2 * most)
    if size < 2 or not most:
        return None
    maxima = scores[:, : scores.shape[1] // size * size].unflatten(1, (size, -1)).amax(1)
    return scores >= _ranked(maxima, wanted)


def _ranked(scores: Tensor, ranks: Tensor) -> Tensor:
    """The ranks[h]-th highest score of each head, [h, 1]; the highest for a rank of 0."""
    least, most = (int(x) for x in ranks.clamp(min=1).aminmax())
    if least == most:
        return scores.kthvalue(scores.shape[1] - most + 1, dim=1, keepdim=True).values
    return scores.topk(most, dim=1).values.gather(1, (ranks - 1).clamp(min=0)[:, None])
