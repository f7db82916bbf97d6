"""The best product of any query with each summary vector, by the native kernel (native/scores_best.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from headwise.kernels.native.held import KINDS, refuse_width
from headwise.kernels.native.library import library, unusable


class _Call(ctypes.Structure):
    """`BestScores` of native/scores_best.cpp."""

    _fields_ = [
        ("query", ctypes.c_void_p),
        ("vector", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("lane", ctypes.c_int64),
        ("token", ctypes.c_int64),
        ("lanes", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("query_kind", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


def refuse(q: Tensor, vectors: Tensor) -> list[str]:
    """Why `q [h, g, t, d]` and `vectors [h, n, d]` are not scored here; empty if they are."""
    if why := unusable():
        return [why]
    reasons = refuse_width(q.shape[3])
    if not q.device.type == vectors.device.type == "cpu":
        reasons.append(f"the native kernels run on the CPU, not on {q.device.type}")
    if vectors.dtype not in KINDS or q.dtype not in KINDS:
        reasons.append(f"no native kernel for queries in {q.dtype}, vectors in {vectors.dtype}")
    if vectors.stride(2) != 1:
        reasons.append("the channels of the vectors do not lie side by side; call .contiguous()")
    if torch.is_grad_enabled() and (q.requires_grad or vectors.requires_grad):
        reasons.append("gradients: the native kernels have none")
    return reasons


def best_scores(q: Tensor, vectors: Tensor, level: str | None = None) -> Tensor:
    """Largest q . x over group and queries, of each vector x: `[h, n]` float32; accepted by `refuse`."""
    kind = torch.bfloat16 if q.dtype == vectors.dtype == torch.bfloat16 else torch.float32
    rows = q.flatten(1, 2).to(kind).contiguous()
    out = torch.empty(vectors.shape[:2], dtype=torch.float32)
    call = _Call(query=rows.data_ptr(), vector=vectors.data_ptr(), out=out.data_ptr())
    size = vectors.element_size()
    call.lane, call.token = vectors.stride(0) * size, vectors.stride(1) * size
    (call.lanes, call.rows, call.width), call.count = rows.shape, vectors.shape[1]
    call.kind, call.query_kind, call.threads = KINDS[vectors.dtype], KINDS[kind], torch.get_num_threads()
    library(level).headwise_best_scores(ctypes.byref(call))
    return out
