"""A prompt's queries over what is held: flash attention over the key blocks that a form shows (native/prefill.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.errors import HeadwiseError
from headwise.forms.attended import Attended
from headwise.forms.where import Blocks, Causal, Full, Tokens, VerticalSlash, Where, Window
from headwise.kernels.native.held import KINDS, CHeld, Held, Softmax, refuse_queries
from headwise.kernels.native.library import library

SHAPES: dict[type[Where], int] = {Causal: 0, Full: 1, Window: 2, Blocks: 3, Tokens: 4, VerticalSlash: 5}
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

    def __init__(self, q: Tensor, held: Held, where: Where, softmax: Softmax) -> None:
        size = q.element_size()
        self._kept: list[object] = [q, held]
        self.c = CAsk(held=held.c, query=q.data_ptr(), group=q.shape[1], tokens=q.shape[2], form=self._form(where))
        self.c.query_lane, self.c.query_head, self.c.query_token = (stride * size for stride in q.stride()[:3])
        self.c.scale, self.c.softcap = softmax.scale, softmax.softcap or 0.0
        self.c.kind, self.c.threads = KINDS[q.dtype], torch.get_num_threads()

    def _form(self, where: Where) -> _Form:
        form = _Form(shape=SHAPES[type(where)])
        if isinstance(where, Window):
            form.left, form.sinks = where.left, where.sinks
        if isinstance(where, Blocks):
            form.size = where.size
            form.offsets, form.columns = self._keep(where.offsets.cpu(), where.columns.cpu())
        if isinstance(where, Tokens):
            form.offsets, form.columns = self._keep(*_flat(where.indices))
        if isinstance(where, VerticalSlash):
            form.offsets, form.columns = self._keep(*_flat(where.verticals))
            form.slash_offsets, form.slashes = self._keep(*_flat(where.slashes))
        return form

    def _keep(self, *tensors: Tensor) -> list[int]:
        tensors = tuple(one.contiguous() for one in tensors)
        self._kept.extend(tensors)
        return [one.data_ptr() for one in tensors]


def check(code: int) -> None:
    """Raise HeadwiseError for what a kernel returned, unless it is 0."""
    if code:
        raise HeadwiseError("out of memory for packing one KV head's keys and values; free some or shorten the context")


def refuse(q: Tensor, where: Where, softmax: Softmax) -> list[str]:
    """Why a prompt's queries `q [h, g, t, d]` are not computed over this form; empty if they are."""
    reasons = refuse_queries(q, softmax)
    if type(where) not in SHAPES:
        reasons.append(f"{type(where).__name__} has no native kernel")
    if isinstance(where, Blocks) and where.size % BLOCK:
        reasons.append(f"Blocks(size={where.size}): the native kernel takes multiples of {BLOCK}")
    return reasons


def prefill(q: Tensor, held: Held, where: Where, softmax: Softmax, level: str | None = None) -> Attended:
    """Attention of `q [h, g, t, d]` over what is held; accepted by `refuse` before."""
    ask = Ask(q, held, where, softmax)
    out = q.new_empty(*q.shape[:3], held.c.value.width)
    lse = torch.empty(q.shape[:3])
    call = _Call(ask=ask.c, out=out.data_ptr(), lse=lse.data_ptr())
    check(library(level).headwise_prefill(ctypes.byref(call)))
    return Attended(out, lse)
