"""A few new tokens over what is held: one pass over keys and values for all grouped queries (native/decode.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
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
        ("place", ctypes.c_void_p),
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


def decode(q: Tensor, held: Held, where: Where, scoring: Scoring, level: str | None = None) -> Attended:
    """Attention of `q [h, g, t, d]` over what is held, where it `fits`."""
    attended = Decode([(held, range(q.shape[0]))], scoring, level)(q, where)
    assert attended is not None, f"{type(where).__name__} does not fit: ask `fits` first"
    return attended


class Decode:
    """The kernel over what is held, in one or more parts: attention of `q [h, g, t, d]` where it `fits`.

    parts: what is held of some lanes, and which of the h these are; together all of them, each once. A call can be made
    again while what is held lies where it does; lanes may lengthen meanwhile. skip: channels in front of what is read
    of the values.
    """

    backend = "native"

    def __init__(
        self, parts: Sequence[tuple[Held, Sequence[int]]], scoring: Scoring, level: str | None = None, skip: int = 0
    ) -> None:
        self._skip, self._parts, self._width = skip, [held for held, _ in parts], parts[0][0].c.value.width
        self._places = [numbers(lanes) for _, lanes in parts]
        self._calls, self._count = (_Call * len(parts))(), ctypes.c_int64(len(parts))
        for call, held, places in zip(self._calls, self._parts, self._places, strict=True):
            call.held, call.place = held.c, address(places)
            call.scale, call.softcap = scoring.scale, scoring.softcap or 0.0
        self._run = library(level).headwise_decode

    def lengthen(self, part: int, lengths: list[int]) -> None:
        """The lanes of a part hold so many tokens now."""
        self._parts[part].lengths[:] = lengths  # type: ignore[assignment]  # ints, which ctypes converts

    def __call__(self, q: Tensor, where: Where) -> Attended | None:
        """As `where` shows; None where it reads no such form. Chosen tokens are those of a single part."""
        lowered = where.lowered
        if isinstance(lowered, Rule):
            return self.over(q, lowered.causal, -1 if lowered.left is None else lowered.left, lowered.sinks)
        if not isinstance(lowered, Indices) or lowered.bias is not None:
            return None
        if lowered.table is None:
            entries, edges = torch.cat(lowered.lists), [0, *accumulate(map(len, lowered.lists))]
        else:
            entries, each = lowered.table.contiguous(), lowered.table.shape[1]
            edges = [*range(0, each * (len(lowered.lists) + 1), each)] if each else [0] * (len(lowered.lists) + 1)
        firsts = numbers(edges)
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
        place, kind, threads = q.data_ptr(), KINDS[q.dtype], torch.get_num_threads()
        size, strides = q.element_size(), q.stride()
        lane, group, token = strides[0] * size, strides[1] * size, strides[2] * size
        for call in self._calls:
            call.q, call.q_kind, call.groups, call.tokens = place, kind, g, t
            call.q_lane, call.q_group, call.q_token = lane, group, token
            call.causal, call.left, call.sinks = causal, left, sinks
            call.chosen, call.chosen_first = chosen, chosen_first
            call.out, call.lse, call.threads = out.data_ptr(), lse.data_ptr(), threads
        self._run(self._calls, self._count)
        return Attended(out, lse).without(self._skip)
