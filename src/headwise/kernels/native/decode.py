"""A few new tokens over what is held: one pass over keys and values for all grouped queries (native/decode.cpp)."""

from __future__ import annotations

import ctypes
from itertools import accumulate

import torch
from torch import Tensor

from headwise.forms import Attended, Indices, Rule, Scoring, Where
from headwise.kernels.native.held import KINDS, CHeld, Held, address, numbers
from headwise.kernels.native.library import library

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
    """Whether `q [h, g, t, d]` is a step of decoding: few new tokens, by one rule or over chosen tokens."""
    if q.shape[2] > MOST_TOKENS or q.shape[1] * q.shape[2] > MOST_ROWS:
        return False
    lowered = where.lowered
    return isinstance(lowered, Rule) or (isinstance(lowered, Indices) and lowered.bias is None)


class Decode:
    """The kernel over what is held: attention of `q [h, g, t, d]` where it `fits`. A call can be made again while what
    is held lies where it does; lanes may lengthen meanwhile."""

    backend = "native"

    def __init__(self, held: Held, scoring: Scoring, level: str | None = None) -> None:
        self._held, self._width = held, held.c.value.width
        self._call = _Call(held=held.c, scale=scoring.scale, softcap=scoring.softcap or 0.0)
        self._place, self._run = ctypes.byref(self._call), library(level).headwise_decode

    def lengthen(self, lengths: list[int]) -> None:
        """Lanes hold so many tokens now."""
        self._held.lengths[:] = lengths  # type: ignore[assignment]  # ints, which ctypes converts

    def __call__(self, q: Tensor, where: Where) -> Attended:
        """As `where` shows."""
        lowered = where.lowered
        if isinstance(lowered, Rule):
            return self.over(q, lowered.causal, -1 if lowered.left is None else lowered.left, lowered.sinks)
        assert isinstance(lowered, Indices), f"{type(where).__name__} does not fit: ask `fits` first"
        entries = torch.cat(lowered.lists) if lowered.table is None else lowered.table.contiguous()
        firsts = numbers([0, *accumulate(len(one) for one in lowered.lists)])
        return self.over(q, True, chosen=entries.data_ptr(), chosen_first=address(firsts))

    def over(
        self,
        q: Tensor,
        causal: bool,
        left: int = -1,
        sinks: int = 0,
        chosen: int | None = None,
        chosen_first: int | None = None,
    ) -> Attended:
        """Over everything, or what is not after a query; of that the `left` keys before it and the first `sinks`; or
        the entries at `chosen`, of which those of a lane begin where `chosen_first` says (addresses of int64)."""
        h, g, t, _ = q.shape
        out, lse = q.new_empty(h, g, t, self._width), torch.empty(h, g, t)
        call, size, strides = self._call, q.element_size(), q.stride()
        call.q, call.q_kind, call.groups, call.tokens = q.data_ptr(), KINDS[q.dtype], g, t
        call.q_lane, call.q_group, call.q_token = strides[0] * size, strides[1] * size, strides[2] * size
        call.causal, call.left, call.sinks, call.chosen, call.chosen_first = causal, left, sinks, chosen, chosen_first
        call.out, call.lse, call.threads = out.data_ptr(), lse.data_ptr(), torch.get_num_threads()
        self._run(self._place)
        return Attended(out, lse)


def decode(q: Tensor, held: Held, where: Where, scoring: Scoring, level: str | None = None) -> Attended:
    """Attention of `q [h, g, t, d]` over what is held, where it `fits`."""
    return Decode(held, scoring, level)(q, where)
