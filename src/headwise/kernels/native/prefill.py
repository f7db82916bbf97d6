"""A prompt's queries over what is held: flash attention over the key blocks that a form shows (native/prefill.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.errors import HeadwiseError
from headwise.forms import Attended, Blocks, Buckets, Gathered, Indices, Rule, Scoring, VerticalSlash, Where
from headwise.kernels.native.held import KINDS, CHeld, Held, refuse_queries
from headwise.kernels.native.library import library

CAUSAL, FULL, WINDOW, BLOCKS, TOKENS, LINES = range(6)  # `Shape` of native/prefill_where.hpp
BLOCK = 16  # keys that the kernel takes or leaves together


class _Form(ctypes.Structure):
    """`Form` of native/prefill_where.hpp."""

    _fields_ = [
        ("shape", ctypes.c_int32),
        ("left", ctypes.c_int64),
        ("sinks", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("offsets", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("slash_offsets", ctypes.c_void_p),
        ("slashes", ctypes.c_void_p),
    ]


class CAsk(ctypes.Structure):
    """`Ask` of native/prefill_tile.hpp."""

    _fields_ = [
        ("held", CHeld),
        ("query", ctypes.c_void_p),
        ("query_lane", ctypes.c_int64),
        ("query_head", ctypes.c_int64),
        ("query_token", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("kind", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("form", _Form),
    ]


class _Call(ctypes.Structure):
    """`Prefill` of native/prefill.cpp."""

    _fields_ = [("ask", CAsk), ("out", ctypes.c_void_p), ("lse", ctypes.c_void_p)]


def _flat(lists: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ragged lists end to end: where each begins (and the end), and the entries."""
    edges = torch.tensor([0, *(one.shape[0] for one in lists)]).cumsum(0)
    return edges, torch.cat(tuple(lists)).cpu()


class Ask:
    """A `CAsk` with everything it points to, so that nothing is freed while a kernel reads."""

    def __init__(self, q: Tensor, held: Held, where: Where, scoring: Scoring) -> None:
        size = q.element_size()
        self._kept: list[object] = [q, held]
        self.c = CAsk(held=held.c, query=q.data_ptr(), group=q.shape[1], tokens=q.shape[2], form=self._form(where))
        self.c.query_lane, self.c.query_head, self.c.query_token = (stride * size for stride in q.stride()[:3])
        self.c.scale, self.c.softcap = scoring.scale, scoring.softcap or 0.0
        self.c.kind, self.c.threads = KINDS[q.dtype], torch.get_num_threads()

    def _form(self, where: Where) -> _Form:
        match where.lowered:
            case Rule(causal, None, _):
                return _Form(shape=CAUSAL if causal else FULL)
            case Rule(_, left, sinks):
                return _Form(shape=WINDOW, left=left, sinks=sinks)
            case Blocks(size, offsets, columns):
                places = self._keep(offsets.cpu(), columns.cpu())
                return _Form(BLOCKS, 0, 0, size, *places)
            case Indices(lists):
                return _Form(TOKENS, 0, 0, 0, *self._keep(*_flat(lists)))
            case VerticalSlash(verticals, slashes):
                return _Form(LINES, 0, 0, 0, *self._keep(*_flat(verticals), *_flat(slashes)))
        raise HeadwiseError(f"{type(where).__name__} has no native kernel; ask `refuse` first")

    def _keep(self, *tensors: Tensor) -> list[int]:
        tensors = tuple(one.contiguous() for one in tensors)
        self._kept.extend(tensors)
        return [one.data_ptr() for one in tensors]


def check(code: int) -> None:
    """Raise HeadwiseError for what a kernel returned, unless it is 0."""
    if code:
        raise HeadwiseError("out of memory for packing one KV head's keys and values; free some or shorten the context")


def refuse(q: Tensor, where: Where, scoring: Scoring) -> list[str]:
    """Why a prompt's queries `q [h, g, t, d]` are not computed over this form; empty if they are."""
    reasons = refuse_queries(q, scoring)
    match where.lowered:
        case None | Buckets() | Gathered():
            reasons.append(f"{type(where).__name__} has no native kernel")
        case Indices(bias=bias) if bias is not None:
            reasons.append(f"{type(where).__name__} has no native kernel: its tokens count unequally")
        case Blocks(size) if size % BLOCK:
            reasons.append(f"Blocks(size={size}): the native kernel takes multiples of {BLOCK}")
    return reasons


def prefill(q: Tensor, held: Held, where: Where, scoring: Scoring, level: str | None = None) -> Attended:
    """Attention of `q [h, g, t, d]` over what is held; accepted by `refuse` before."""
    ask = Ask(q, held, where, scoring)
    out = q.new_empty(*q.shape[:3], held.c.value.width)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    call = _Call(ask=ask.c, out=out.data_ptr(), lse=lse.data_ptr())
    check(library(level).headwise_prefill(ctypes.byref(call)))
    return Attended(out, lse)
