"""Attention in plain torch, written to be read: the oracle of every other backend. Takes every request."""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.attention.attended import Attended
from headwise.attention.request import Request
from headwise.attention.where import BLOCK_ELEMENTS, Full, Tokens


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def scores(q: Tensor, k: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Raw scores of `q [h, g, t, d]` on `k [h, n, d]`, both already wide: `[h, g, t, n]`, before masking.

    softcap * tanh(s / softcap) is Gemma-2's cap (arXiv 2408.00118).
    """
    raw = torch.einsum("hgtd,hnd->hgtn", q * scale, k)
    return raw if softcap is None else softcap * torch.tanh(raw / softcap)


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


def weigh(p: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """`p [h, g, t, n]` times `v [h, n, e]`, where an invisible key adds nothing, even a NaN."""
    finite = v.isfinite()
    if bool(finite.all()):
        return torch.einsum("hgtn,hne->hgte", p, v)
    out = torch.einsum("hgtn,hne->hgte", p, v.masked_fill(~finite, 0.0))
    spoiled = visible.to(p.dtype).expand(v.shape[0], -1, -1) @ (~finite).to(p.dtype) > 0
    return out.masked_fill(spoiled[:, None], float("nan"))


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
            return self._gathered(request, request.where)
        q, k, v = wide(request.q), wide(request.k), wide(request.v)
        h, g, t, _ = q.shape
        n = k.shape[1]
        outs, lses = [], []
        step = max(1, BLOCK_ELEMENTS // max(1, h * g * n))
        for start in range(0, t, step):
            stop = min(start + step, t)
            visible = request.where.rows(start, stop, t, n, q.device)
            p, lse = probabilities(scores(q[:, :, start:stop], k, request.scale, request.softcap), visible)
            outs.append(weigh(p, v, visible))
            lses.append(lse)
        return Attended(torch.cat(outs, 2).to(request.q.dtype), torch.cat(lses, 2))

    def _gathered(self, request: Request, where: Tokens) -> Attended:
        """Per head, take the chosen keys out first: the others may be unused pages full of NaN."""
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
            p, lse = probabilities(scores(q, k, request.scale, request.softcap), visible)
            outs.append(weigh(p, v, visible))
            lses.append(lse)
        return Attended(torch.cat(outs).to(request.q.dtype), torch.cat(lses))
