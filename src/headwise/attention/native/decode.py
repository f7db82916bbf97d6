"""A few new tokens over what is held: one pass over keys and values for all grouped queries (native/decode.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from headwise.attention.attended import Attended
from headwise.attention.native.held import KINDS, CHeld, Held, Softmax, address, numbers
from headwise.attention.native.library import library
from headwise.attention.where import Causal, Full, Tokens, Where, Window

MOST_TOKENS = 16  # new tokens of a lane; more is a prompt
MOST_ROWS = 256  # query rows of a lane: grouped heads times new tokens


class _Call(ctypes.Structure):
    """`Decode` of native/decode.cpp."""

    _fields_ = [
        ("held", CHeld),
        ("q", ctypes.c_void_p),
        ("q_lane", ctypes.c_int64),
        ("q_group", ctypes.c_int64),
        ("q_token", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("causal", ctypes.c_int64),
        ("left", ctypes.c_int64),
        ("sinks", ctypes.c_int64),
        ("chosen", ctypes.c_void_p),
        ("chosen_first", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("q_kind", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


def fits(q: Tensor, where: Where) -> bool:
    """Whether `q [h, g, t, d]` is a step of decoding: few new tokens, over all, a window or chosen tokens."""
    few = q.shape[2] <= MOST_TOKENS and q.shape[1] * q.shape[2] <= MOST_ROWS
    return few and isinstance(where, Causal | Full | Window | Tokens)


def decode(q: Tensor, held: Held, where: Where, softmax: Softmax, level: str | None = None) -> Attended:
    """Attention of `q [h, g, t, d]` over what is held, where it `fits`."""
    h, g, t, _ = q.shape
    out = q.new_empty(h, g, t, held.c.value.width)
    lse = torch.empty(h, g, t)
    size = q.element_size()
    call = _Call(held=held.c, q=q.data_ptr(), groups=g, tokens=t, causal=where.causal, left=-1)
    call.q_lane, call.q_group, call.q_token = (stride * size for stride in q.stride()[:3])
    if isinstance(where, Window):
        call.left, call.sinks = where.left, where.sinks
    if isinstance(where, Tokens):
        entries = torch.cat(where.indices) if where.table is None else where.table.contiguous()
        firsts = numbers([0, *torch.tensor([one.shape[0] for one in where.indices]).cumsum(0).tolist()])
        call.chosen, call.chosen_first = entries.data_ptr(), address(firsts)
    call.out, call.lse = out.data_ptr(), lse.data_ptr()
    call.scale, call.softcap = softmax.scale, softmax.softcap or 0.0
    call.q_kind, call.threads = KINDS[q.dtype], torch.get_num_threads()
    library(level).headwise_decode(ctypes.byref(call))
    return Attended(out, lse)
