"""Torch's fused attention kernels, called below `scaled_dot_product_attention`, which keeps the log-sum-exp to itself.

Keys and values that no query sees may be NaN; those that a later query sees must be finite, as inside a fused block a
masked value is multiplied by zero.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from headwise.forms import Attended, Indices, Rule, Window, join
from headwise.kernels.dispatch import BACKENDS, Backend, Kernel
from headwise.kernels.request import EDITED, Request

_aten = torch.ops.aten
SPLIT_KEYS = 2048  # fewest keys worth a thread of their own: below, joining the parts costs more than it saves
BAND_ROWS = 128  # queries of a window read at once: more waste work beside the band, fewer cost calls
QUERY_ROWS = 32  # rows that the CPU kernel hands to a thread at least


def _fused(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`q [b, heads, t, d]`, `k`, `v [b, heads, n, d]` -> out like q, lse `[b, heads, t]`; `bias [t, n]` on CPUs only.

    Never called with n = 0: the CPU kernel divides by it and takes the process down.
    """
    if q.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
    if q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= 256:
        out, lse = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)[:2]
    else:
        out, lse = _aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)[:2]
    return out, lse[:, :, : q.shape[2]]  # the efficient kernel pads lse to a multiple of 32 queries


@cache
def trial(device: str, dtype: torch.dtype, width: int) -> str:
    """Why the fused kernel cannot be used for this device, type and key width, by running it once; empty if it can."""
    with torch.no_grad():
        x = torch.linspace(-1, 1, 2 * 3 * width, dtype=torch.float64).view(1, 2, 3, width)
        q = x.to(device=device, dtype=dtype)
        try:
            out, lse = _fused(q, q[:, :1].expand(1, 2, 3, width), q, 0.5, True)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            return f"the fused kernel fails for {dtype}, width {width} on {device}: {str(error).splitlines()[0]}"
        exact = q.cpu().double()
        s = (exact @ exact[:, :1].transpose(-1, -2) * 0.5).masked_fill(~torch.ones(3, 3).tril().bool(), float("-inf"))
        off_out = float((out.cpu().double() - s.softmax(-1) @ exact).abs().max())
        off_lse = float((lse.cpu().double() - s.logsumexp(-1)).abs().max())
        if not (off_out < 0.03 and off_lse < 0.03):
            return (
                f"the fused kernel is wrong for {dtype}, width {width} on {device} ({off_out:.2g}, {off_lse:.2g} off)"
            )
    return ""


def _full(request: Request, k: Tensor, v: Tensor) -> Attended:
    """All of `k`, `v [h, m, d]` seen by all queries: the group is folded into the query rows, so no key is repeated."""
    q = request.q
    h, g, t, d = q.shape
    if not k.shape[1]:
        return Attended.empty(q, d)
    threads = torch.get_num_threads() if q.device.type == "cpu" else 1
    tasks = h * -(-g * t // QUERY_ROWS)
    if 2 * tasks <= threads and k.shape[1] >= 2 * SPLIT_KEYS:
        return _split(request, k, v, min(threads // tasks, k.shape[1] // SPLIT_KEYS))
    out, lse = _fused(q.reshape(1, h, g * t, d), k[None], v[None], request.scoring.scale, False)
    return Attended(out.view(h, g, t, d), lse.view(h, g, t))


def _split(request: Request, k: Tensor, v: Tensor, parts: int) -> Attended:
    """As `_full`, with each head's keys in `parts` stretches: the CPU kernel gives a head's keys to one thread only."""
    q = request.q
    h, g, t, d = q.shape
    stretch = k.shape[1] // parts
    even, scale = stretch * parts, request.scoring.scale
    cut_k, cut_v = (x[:, :even].unflatten(1, (parts, stretch)) for x in (k, v))
    out, lse = _fused(q.reshape(h, 1, g * t, d).expand(h, parts, g * t, d), cut_k, cut_v, scale, False)
    total = lse.logsumexp(1, keepdim=True)
    joined = (out.to(lse.dtype) * torch.exp(lse - total)[..., None]).sum(1).to(q.dtype)
    got = Attended(joined.view(h, g, t, d), total.view(h, g, t))
    if even == k.shape[1]:
        return got
    rest, rest_lse = _fused(
        q.reshape(1, h, g * t, d), k[None, :, even:], v[None, :, even:], request.scoring.scale, False
    )
    return got + Attended(rest.view(h, g, t, d), rest_lse.view(h, g, t))


def _square(request: Request, k: Tensor, v: Tensor) -> Attended:
    """Causal over as many keys as queries: heads lie along the batch, the group along the heads, keys at stride 0."""
    h, g, t, d = request.q.shape
    shape = (h, g, t, d)
    out, lse = _fused(request.q, k[:, None].expand(shape), v[:, None].expand(shape), request.scoring.scale, True)
    return Attended(out, lse)


def _band(request: Request, left: int, count: int) -> Attended:
    """A window of the `left` keys before each of several queries, by blocks of them: the band under a mask, plus the
    first `count` keys, the sinks, before it without one."""
    k, v = request.k, request.v
    t, n = request.q.shape[2], k.shape[1]
    done = []
    for start in range(0, t, BAND_ROWS):
        stop = min(start + BAND_ROWS, t)
        low, high = max(0, n - t + start - left), n - t + stop
        block = replace(request, q=request.q[:, :, start:stop])
        band = Window(left, max(0, count - low)).dense(stop - start, high - low, k.device)[0]
        bias = torch.zeros(band.shape, dtype=k.dtype, device=k.device).masked_fill_(~band, float("-inf"))
        h, g, _, d = block.q.shape
        keys, values = (x[:, None, low:high].expand(h, g, high - low, d) for x in (k, v))
        part = Attended(*_fused(block.q, keys, values, request.scoring.scale, False, bias))
        sinks = min(count, low)
        done.append(part + _full(block, k[:, :sinks], v[:, :sinks]) if sinks else part)
    return Attended(torch.cat([part.out for part in done], 2), torch.cat([part.lse for part in done], 2))


def _take(x: Tensor, table: Tensor) -> Tensor:
    """`x [h, n, d]` at `table [h, m]` -> `[h, m, d]`, as one row copy; torch.gather is four to ten times slower."""
    h, n, d = x.shape
    if x.stride(1) and x.stride(0) % x.stride(1) == 0:
        ahead = x.stride(0) // x.stride(1)
        flat = x.as_strided(((h - 1) * ahead + n, d), (x.stride(1), 1))
        starts = torch.arange(0, h * ahead, ahead, device=table.device) if ahead else 0
        rows = table + starts[:, None] if isinstance(starts, Tensor) else table
        return flat.index_select(0, rows.view(-1)).view(h, table.shape[1], d)
    return torch.stack([one.index_select(0, index) for one, index in zip(x, table, strict=True)])


def available() -> tuple[bool, str]:
    """Runs a tiny problem on the CPU, and on the GPU where there is one."""
    types = {"cpu": torch.float32} | ({"cuda": torch.float16} if torch.cuda.is_available() else {})
    failed = {device: trial(device, dtype, 32) for device, dtype in types.items()}
    return not all(failed.values()), "; ".join(reason or f"works on {device}" for device, reason in failed.items())


def refuse(request: Request) -> list[str]:
    """Reasons not to take this request: it is dense and windowed prefill, history pieces, and decoding over all, a
    window or chosen tokens that are taken."""
    q, k, v = request.q, request.k, request.v
    reasons = []
    if request.scoring.softcap is not None:
        reasons.append(f"softcap={request.scoring.softcap}: the fused kernel has no score cap")
    if request.scoring.edit is not None:
        reasons.append(EDITED)
    if k.shape[2] != v.shape[2]:
        reasons.append(f"key width {k.shape[2]} and value width {v.shape[2]} differ")
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        reasons.append("gradients: the fused kernel's log-sum-exp carries none")
    if q.stride(3) != 1 or k.stride(2) != 1 or v.stride(2) != 1:
        reasons.append("the channels of q, k or v do not lie side by side; call .contiguous()")
    if form := _refused_form(request):
        reasons.append(form)
    if q.device.type not in ("cpu", "cuda"):
        reasons.append(f"no fused kernel known for {q.device.type}")
    elif failed := trial(str(q.device), q.dtype, q.shape[3]):
        reasons.append(failed)
    return reasons


def _refused_form(request: Request) -> str:
    lowered, t = request.where.lowered, request.q.shape[2]
    match lowered:
        case Rule(left=None):
            return ""
        case Rule(left=int(left)) if request.q.device.type == "cpu" or t == 1 or left >= request.k.shape[1] - 1:
            return ""
        case Rule():
            return f"a window over {t} queries needs a mask, which is fused on the CPU only"
        case Indices(bias=None) if t == 1:
            return ""
    return f"{type(request.where).__name__} over {t} queries needs a mask, which the fused kernel reads as t x n"


def attend(request: Request) -> Attended:
    """Attention of a request."""
    lowered, k, v = request.where.lowered, request.k, request.v
    t, n = request.q.shape[2], k.shape[1]
    if isinstance(lowered, Indices):
        return _tokens(request, lowered)
    assert isinstance(lowered, Rule), f"{type(request.where).__name__} is no rule: ask `refuse` first"
    if lowered.left is not None and lowered.left < n - 1:
        if t > 1:
            return _band(request, lowered.left, lowered.sinks)
        edge = n - 1 - lowered.left
        near = _full(request, k[:, edge:], v[:, edge:])
        sinks = min(lowered.sinks, edge)
        return near + _full(request, k[:, :sinks], v[:, :sinks]) if sinks else near
    if not lowered.causal or t == 1:
        return _full(request, k, v)
    if t == n:
        return _square(request, k, v)
    past = n - t
    return join((_full(request, k[:, :past], v[:, :past]), _square(request, k[:, past:], v[:, past:])))


def _tokens(request: Request, chosen: Indices) -> Attended:
    """One query: gather, then all is visible. Heads with different counts go one by one."""
    k, v = request.k, request.v
    if chosen.table is not None:
        table = chosen.table.to(k.device)
        return _full(request, _take(k, table), _take(v, table))
    parts = []
    for head, index in enumerate(chosen.lists):
        index = index.to(k.device)
        alone = replace(request, q=request.q[head, None])
        parts.append(_full(alone, k[head].index_select(0, index)[None], v[head].index_select(0, index)[None]))
    return Attended(torch.cat([part.out for part in parts]), torch.cat([part.lse for part in parts]))


BACKENDS.add("sdpa", Backend("sdpa", 20, available, {"attend": Kernel(refuse, attend)}))
