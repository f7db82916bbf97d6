"""The highest estimated score of each pair of blocks, by the native kernel (native/estimates.cpp)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.forms import Codes, Scoring
from headwise.kernels.native.held import KINDS, refuse_queries, refuse_width
from headwise.kernels.native.library import library, unusable
from headwise.kernels.native.prefill import check


class _Call(ctypes.Structure):
    """`Estimates` of native/estimates.cpp."""

    _fields_ = [
        ("query", ctypes.c_void_p),
        ("below", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("key_step", ctypes.c_void_p),
        ("middle", ctypes.c_void_p),
        ("maxima", ctypes.c_void_p),
        ("query_lane", ctypes.c_int64),
        ("query_head", ctypes.c_int64),
        ("query_token", ctypes.c_int64),
        ("lanes", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("keys", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("most", ctypes.c_float),
        ("kind", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class Estimates:
    """Estimated causal scores of `q [h, g, t, d]` on keys `[h, n, d]` as codes; accepted by `refuse` before.

    level: the instruction level to use, for tests; None: the best that works here.
    """

    q: Tensor
    k: Codes
    scoring: Scoring
    level: str | None = None

    def refuse(self) -> list[str]:
        """Why the native kernel does not take these; empty if it does."""
        if why := unusable():
            return [why]
        reasons = refuse_queries(self.q, self.scoring) + refuse_width(self.q.shape[3])
        if self.k.whole.device != self.q.device:
            reasons.append(f"q and k differ: {self.q.device}, {self.k.whole.device}")
        if torch.is_grad_enabled() and self.q.requires_grad:
            reasons.append("gradients: the native kernels have none")
        return reasons

    def block_maxima(self, block: int, below: Tensor) -> Tensor:
        """Highest score, less `below [h, g, t]`, of each query block on each key block: `[h, q_blocks, key_blocks]`."""
        (h, g, t, d), n = self.q.shape, self.k.whole.shape[1]
        block = min(block, n)  # beyond, there is one block
        maxima = torch.empty(h, -(-t // block), -(-n // block), dtype=torch.float32)
        kept = [one.contiguous() for one in (below.float(), self.k.whole, self.k.step, self.k.middle)]
        places = (one.data_ptr() for one in (self.q, *kept, maxima))
        strides = (stride * self.q.element_size() for stride in self.q.stride()[:3])
        call = _Call(
            *places, *strides, h, g, t, n, d, block, self.scoring.scale, self.scoring.softcap or 0.0, self.k.most
        )
        call.kind, call.threads = KINDS[self.q.dtype], torch.get_num_threads()
        check(library(self.level).headwise_estimates(ctypes.byref(call)))
        return maxima
