"""Scores, probabilities and their weighted sums in plain torch, by blocks of queries: what the reference is made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headwise.forms import Scoring, Sinks, Where
from headwise.forms.where import BLOCK_ELEMENTS


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def scores(q: Tensor, k: Tensor, scoring: Scoring) -> Tensor:
    """Scores of `q [h, g, t, d]` on `k [h, n, d]`, both already wide: `[h, g, t, n]`, before masking."""
    return scoring.capped(torch.einsum("hgtd,hnd->hgtn", q * scoring.scale, k))


def score_blocks(
    q: Tensor, k: Tensor, where: Where, scoring: Scoring, first: int = 0, align: int = 1
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of queries from `first` on, in multiples of `align`: memory O(block * n), never t x n.

    Yields the block's queries, its scores `[h, g, rows, m]` and what it sees `[h or 1, rows, m]`, where m <= n leaves
    out the keys after the block. `q [h, g, t, d]` and `k [h, n, d]` are already wide and fit `where`.
    """
    h, g, t, _ = q.shape
    n = k.shape[1]
    step = max(1, BLOCK_ELEMENTS // max(1, h * g * n) // align) * align
    for start in range(first, t, step):
        stop = min(start + step, t)
        reach = n - t + stop if where.causal else n
        visible = where.rows(start, stop, t, n, q.device)[:, :, :reach]
        yield slice(start, stop), scores(q[:, :, start:stop], k[:, :reach], scoring), visible


def probabilities(s: Tensor, visible: Tensor, sinks: Sinks | None = None) -> tuple[Tensor, Tensor]:
    """Softmax of `s [h, g, t, n]` over the keys that `visible [h or 1, t, n]` shows, and its log-sum-exp `[h, g, t]`.

    Rows that see nothing are 0 and -inf. Scores of invisible keys may be NaN. Sinks join as one more score, of which
    nothing is told but what the rows are short of 1.
    """
    if sinks is not None:
        s = torch.cat((s, sinks.logits.to(s)[:, :, None, None].expand(*s.shape[:3], 1)), -1)
        p, lse = probabilities(s, torch.nn.functional.pad(visible, (0, 1), value=True))
        return p[..., :-1], lse
    s = s.masked_fill(~visible[:, None], float("-inf"))
    if not s.shape[-1]:
        return s, s.new_full(s.shape[:3], float("-inf"))
    peak = s.detach().amax(-1, keepdim=True)
    peak = peak.masked_fill(peak == float("-inf"), 0.0)
    p = torch.exp(s - peak)
    total = p.sum(-1, keepdim=True)
    return p / total.masked_fill(total == 0, 1.0), (peak + total.log()).squeeze(-1)


def spoiled(v: Tensor) -> Tensor | None:
    """Which of `v [h, n, e]` are NaN or infinite; None if none is."""
    broken = ~v.isfinite()
    return broken if bool(broken.any()) else None


def weigh(p: Tensor, v: Tensor, broken: Tensor | None, visible: Tensor) -> Tensor:
    """`p [h, g, t, m]` times the first m of `v [h, n, e]`, where an invisible key adds nothing, even a NaN.

    `broken` is `spoiled(v)`: a product with zero would let it through.
    """
    m = p.shape[3]
    if broken is None:
        return torch.einsum("hgtn,hne->hgte", p, v[:, :m])
    out = torch.einsum("hgtn,hne->hgte", p, v[:, :m].masked_fill(broken[:, :m], 0.0))
    reached = visible.to(p.dtype).expand(v.shape[0], -1, -1) @ broken[:, :m].to(p.dtype) > 0
    return out.masked_fill(reached[:, None], float("nan"))
