"""The best entries of every row, by the native kernel (native/topk.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from headwise.kernels.native.held import KINDS
from headwise.kernels.native.library import library, unusable
from headwise.kernels.reference.choice import check_scores


class _Call(ctypes.Structure):
    """`Choice` of native/topk.cpp."""

    _fields_ = [
        ("scores", ctypes.c_void_p),
        ("protect", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("score_row", ctypes.c_int64),
        ("protect_row", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("entries", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("stored", ctypes.c_int64),
        ("threads", ctypes.c_int32),
    ]


def refuse(scores: Tensor, counts: Tensor | int, protect: Tensor, size: int, stored: int) -> list[str]:
    """Why `scores [h, n]` are not chosen from here: float32 or narrower, on the CPU, are."""
    if why := unusable():
        return [why]
    if scores.dtype in KINDS and scores.device.type == "cpu" and scores.numel():
        return []
    return [f"no native choice among {scores.numel()} scores of {scores.dtype} on {scores.device.type}"]


def topk(
    scores: Tensor,
    counts: Tensor | int,
    protect: Tensor,
    size: int = 1,
    stored: int | None = None,
    *,
    level: str | None = None,
) -> tuple[Tensor, ...]:
    """Of each row of `scores [h, n]`, accepted by `refuse` before, the `protect`ed entries and the best others,
    `counts` together: ascending int64 lists; between equals the later. HeadwiseError where a score is NaN.

    size, stored: an entry stands for `size` indices of the `stored` ones, which are given in its place.
    """
    heads, entries = scores.shape
    scores = scores.detach().float()
    if scores.stride(1) != 1:
        scores = scores.contiguous()
    if protect.stride(1) != 1:
        protect = protect.contiguous()
    count = torch.empty(heads, dtype=torch.int64).copy_(torch.as_tensor(counts))
    out = torch.empty(heads, entries * size, dtype=torch.int64)
    call = _Call(scores=scores.data_ptr(), protect=protect.data_ptr(), count=count.data_ptr(), out=out.data_ptr())
    call.score_row, call.protect_row = scores.stride(0), protect.stride(0)
    call.rows, call.entries, call.size = heads, entries, size
    call.stored, call.threads = entries * size if stored is None else stored, torch.get_num_threads()
    if library(level).headwise_topk(ctypes.byref(call)) >= 0:
        check_scores(scores)
    return (*[own[:length] for own, length in zip(out, count.tolist(), strict=True)],)
