"""Attention in plain torch, written to be read: the oracle of every other backend. Takes every request."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headwise.forms.attended import Attended
from headwise.forms.pieces import Buckets
from headwise.forms.weighted import Weighted
from headwise.forms.where import BLOCK_ELEMENTS, Full, Tokens, Where
from headwise.kernels.request import Request


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def scores(q: Tensor, k: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Raw scores of `q [h, g, t, d]` on `k [h, n, d]`, both already wide: `[h, g, t, n]`, before masking.

    softcap * tanh(s / softcap) is Gemma-2's cap (arXiv 2408.00118).
    """
    raw = torch.einsum("hgtd,hnd->hgtn", q * scale, k)
    return raw if softcap is None else softcap * torch.tanh(raw / softcap)


def score_blocks(
    q: Tensor, k: Tensor, where: Where, scale: float, softcap: float | None, first: int = 0, align: int = 1
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
        yield slice(start, stop), scores(q[:, :, start:stop], k[:, :reach], scale, softcap), visible


def probabilities(s: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of `s [h, g, t, n]` over the keys that `visible [h or 1, t, n]` shows, and its log-sum-exp `[h, g, t]`.

    Rows that see nothing are 0 and -inf. Scores of invisible keys may be NaN.
    """
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


class Reference:
    """Scores, mask, softmax, weighted sum; in float32 (float64 for float64), by blocks of queries."""

    name = "reference"

    def available(self) -> tuple[bool, str]:
        """Always: averages two equal keys to see that torch works."""
        ones = torch.ones(1, 1, 1, 2)
        got = self(Request(ones, ones[0].expand(1, 2, 2), ones[0].expand(1, 2, 2), Full(), 1.0)).out
        return bool((got == 1).all()), "plain torch on any device"

    def refuse(self, request: Request) -> list[str]:
        """Nothing is refused."""
        return []

    def __call__(self, request: Request) -> Attended:
        if isinstance(request.where, Tokens):
            return self._gathered(request, request.where, None)
        if isinstance(request.where, Weighted):
            return self._gathered(request, request.where.tokens, request.where.bias)
        if isinstance(request.where, Buckets):
            return self._bucketed(request, request.where)
        q, k, v = wide(request.q), wide(request.k), wide(request.v)
        broken = spoiled(v)
        outs, lses = [], []
        for _, s, visible in score_blocks(q, k, request.where, request.scale, request.softcap):
            p, lse = probabilities(s, visible)
            outs.append(weigh(p, v, broken, visible))
            lses.append(lse)
        return Attended(torch.cat(outs, 2).to(request.q.dtype), torch.cat(lses, 2))

    def _gathered(self, request: Request, where: Tokens, bias: tuple[Tensor, ...] | None) -> Attended:
        """Per head, take the chosen keys out first: the others may be unused pages full of NaN. bias: see Weighted."""
        h, _, t, _ = request.q.shape
        n = request.k.shape[1]
        outs, lses = [], []
        for head in range(h):
            index = where.indices[head].to(request.k.device)
            q, k, v = (
                wide(request.q[head, None]),
                wide(request.k[head, index][None]),
                wide(request.v[head, index][None]),
            )
            visible = (index[None] <= torch.arange(n - t, n, device=index.device)[:, None])[None]
            s = scores(q, k, request.scale, request.softcap)
            if bias is not None:
                s = s + bias[head].to(s)
            p, lse = probabilities(s, visible)
            outs.append(weigh(p, v, spoiled(v), visible))
            lses.append(lse)
        return Attended(torch.cat(outs).to(request.q.dtype), torch.cat(lses))

    def _bucketed(self, request: Request, where: Buckets) -> Attended:
        """Some blocks of a head at a time: their queries and keys are taken out, the results put back in order."""
        (h, g, _, _), (blocks, m) = request.q.shape, where.keys.shape[1:]
        got = Attended.empty(wide(request.q), request.v.shape[2])
        step = max(1, BLOCK_ELEMENTS // (g * where.queries.shape[3] * m))
        group = torch.arange(g, device=request.q.device)[:, None, None]
        for head in range(h):
            for start in range(0, blocks, step):
                rows, index = where.queries[head, :, start : start + step], where.keys[head, start : start + step]
                bias = where.bias[head, start : start + step, None]
                k, v = wide(request.k[head, index]), wide(request.v[head, index])
                q = wide(request.q[head, group, rows]).transpose(0, 1)  # [blocks, g, r, d]
                s = scores(q, k, request.scale, request.softcap) + bias[:, None].to(q)
                p, lse = probabilities(s, bias > -torch.inf)
                got.out[head, group, rows] = weigh(p, v, spoiled(v), bias > -torch.inf).transpose(0, 1)
                got.lse[head, group, rows] = lse.transpose(0, 1)
        return Attended(got.out.to(request.q.dtype), got.lse)
