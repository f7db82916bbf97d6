"""Upper bounds of scores by page, by the native kernel (native/scores_pages.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from headwise.attention.native.held import KINDS, refuse_width
from headwise.attention.native.library import library, unusable


class _Call(ctypes.Structure):
    """`PageScores` of native/scores_pages.cpp."""

    _fields_ = [
        ("query", ctypes.c_void_p),
        ("low", ctypes.c_void_p),
        ("high", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("low_lane", ctypes.c_int64),
        ("low_page", ctypes.c_int64),
        ("high_lane", ctypes.c_int64),
        ("high_page", ctypes.c_int64),
        ("lanes", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("pages", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


def refuse(q: Tensor, minimum: Tensor, maximum: Tensor) -> list[str]:
    """Why `q [h, g, t, d]` and bounds `[h, pages, d]` are not scored here; empty if they are."""
    if why := unusable():
        return [why]
    reasons = refuse_width(q.shape[3])
    if not q.device.type == minimum.device.type == maximum.device.type == "cpu":
        reasons.append(f"the native kernels run on the CPU, not on {q.device.type}")
    if minimum.dtype not in KINDS or maximum.dtype != minimum.dtype or q.dtype not in KINDS:
        reasons.append(f"no native kernel for queries in {q.dtype}, bounds in {minimum.dtype} and {maximum.dtype}")
    if minimum.stride(2) != 1 or maximum.stride(2) != 1:
        reasons.append("the channels of the bounds do not lie side by side; call .contiguous()")
    if torch.is_grad_enabled() and (q.requires_grad or minimum.requires_grad or maximum.requires_grad):
        reasons.append("gradients: the native kernels have none")
    return reasons


def page_scores(q: Tensor, minimum: Tensor, maximum: Tensor, level: str | None = None) -> Tensor:
    """Highest possible q . k in each page: `[h, pages]`, the largest over group and queries; accepted by `refuse`."""
    rows = q.float().flatten(1, 2).contiguous()
    out = torch.empty(minimum.shape[:2])
    call = _Call(query=rows.data_ptr(), low=minimum.data_ptr(), high=maximum.data_ptr(), out=out.data_ptr())
    size = minimum.element_size()
    call.low_lane, call.low_page = minimum.stride(0) * size, minimum.stride(1) * size
    call.high_lane, call.high_page = maximum.stride(0) * size, maximum.stride(1) * size
    call.lanes, call.rows, call.width = rows.shape
    call.pages, call.kind, call.threads = minimum.shape[1], KINDS[minimum.dtype], torch.get_num_threads()
    library(level).headwise_page_scores(ctypes.byref(call))
    return out
