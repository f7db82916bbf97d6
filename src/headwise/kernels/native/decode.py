"""A few new tokens over what is held: one pass over keys and values for all grouped queries (native/decode.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import ClassVar

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


class Calls(ctypes.Structure):
    """`Calls` of native/decode.cpp."""

    _fields_ = [("first", ctypes.c_void_p), ("count", ctypes.c_int64)]


class _Join(ctypes.Structure):
    """`Join` of native/join.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("out", "more", "lse")),
        *((name, ctypes.c_int64) for name in ("levels", "rows", "width")),
        ("kind", ctypes.c_int32),
    ]


def fits(q: Tensor, where: Where) -> bool:
    """Whether `q [h, g, t, d]` is a step of decoding: few new tokens, by one rule or over chosen tokens."""
    if q.shape[2] > MOST_TOKENS or q.shape[1] * q.shape[2] > MOST_ROWS:
        return False
    lowered = where.lowered
    return isinstance(lowered, Rule) or (isinstance(lowered, Indices) and lowered.bias is None)


def decode(q: Tensor, held: Held, where: Where, scoring: Scoring, level: str | None = None) -> Attended:
    """Attention of `q [h, g, t, d]` over what is held, where it `fits`."""
    attended = Decode([(held, range(q.shape[0]), 0)], scoring, level)(q, where)
    assert attended is not None, f"{type(where).__name__} does not fit: ask `fits` first"
    return attended


@dataclass(frozen=True)
class Ready:
    """A call of `decode`'s that is told all it needs, and where its results will lie: out [h, g, t, e] of the first
    level, more [levels - 1, h, g, t, e] of others, lse [levels, h, g, t]."""

    decode: Decode
    out: Tensor
    more: Tensor
    lse: Tensor

    backend: ClassVar[str] = "native"

    def run(self, *others: Ready) -> list[Attended]:
        """This call and others, each of another `Decode`, by one call of the kernel; each gives what it gives alone."""
        every = (self, *others)
        sets = (Calls * len(every))(*[one.decode.calls for one in every])
        self.decode.kernel(sets, len(every))
        for one in every:
            if (levels := one.levels) is not None:
                self.decode.join(ctypes.byref(levels))
        return [one.whole() for one in every]

    @cached_property
    def levels(self) -> _Join | None:
        """The call that adds what was read of several levels, in place of the first; None where there is one."""
        *sizes, width = self.out.shape
        if not len(self.more):
            return None
        places = self.out.data_ptr(), self.more.data_ptr(), self.lse.data_ptr()
        return _Join(*places, len(self.lse), prod(sizes), width, KINDS[self.out.dtype])

    def whole(self) -> Attended:
        """What was read of all levels, once they were added."""
        whole = Attended(self.out, self.lse[0])
        return whole.without(self.decode.skip) if self.decode.skip else whole


class Decode:
    """The kernel over what is held, in one or more parts: attention of `q [h, g, t, d]` where it `fits`.

    parts: what is held of some lanes, which of the h these are, and the level: those of level 0 have together all of
    them, each once, with their newest tokens; of another level are earlier tokens of the same lanes. A call can be made
    again while what is held lies where it does; lanes may lengthen meanwhile. skip: channels in front
    of what is read of the values.
    """

    backend = "native"

    def __init__(
        self,
        parts: Sequence[tuple[Held, Sequence[int], int]],
        scoring: Scoring,
        level: str | None = None,
        skip: int = 0,
    ) -> None:
        self.skip, self._parts, self._width = skip, [held for held, _, _ in parts], parts[0][0].c.value.width
        self._places, self._levels = [numbers(lanes) for _, lanes, _ in parts], [level for _, _, level in parts]
        self._calls = (_Call * len(parts))()
        self.calls = Calls(ctypes.addressof(self._calls), len(parts))
        for call, held, places in zip(self._calls, self._parts, self._places, strict=True):
            call.held, call.place = held.c, address(places)
            call.scale, call.softcap = scoring.scale, scoring.softcap or 0.0
        self.kernel, self.join = library(level).headwise_decode, library(level).headwise_join

    def lengthen(self, part: int, lengths: list[int]) -> None:
        """The lanes of a part hold so many tokens now."""
        self._parts[part].lengths[:] = lengths  # type: ignore[assignment]  # ints, which ctypes converts

    def reach(self, part: int, left: int) -> None:
        """A query of a call that is made again sees `left` keys of a part before the newest one; -1: all."""
        self._calls[part].left = left

    def __call__(self, q: Tensor, where: Where) -> Attended | None:
        """As `where` shows; None where it reads no such form. Chosen tokens are those of a single part."""
        lowered = where.lowered
        if isinstance(lowered, Rule):
            left = -1 if lowered.left is None else lowered.left
            return self._made(q, lowered.causal, [left] * len(self._parts), lowered.sinks).run()[0]
        if not isinstance(lowered, Indices) or lowered.bias is not None:
            return None
        if lowered.table is None:
            entries, edges = torch.cat(lowered.lists), [0, *accumulate(map(len, lowered.lists))]
        else:
            entries, each = lowered.table.contiguous(), lowered.table.shape[1]
            edges = [*range(0, each * (len(lowered.lists) + 1), each)] if each else [0] * (len(lowered.lists) + 1)
        firsts = numbers(edges)
        return self._made(q, True, [-1] * len(self._parts), 0, (entries.data_ptr(), address(firsts))).run()[0]

    def over(self, q: Tensor, causal: bool, lefts: Sequence[int] | None = None, out: Tensor | None = None) -> Ready:
        """Over everything, or what of level 0 is not after a query; of each part the number of keys in `lefts` before
        the newest one of a query, and that one, where not -1: of other levels than 0 for a single query alone. out:
        where the result goes, [h, g, t, e] without gaps. To be run while q is there, and before this is told anything
        else."""
        return self._made(q, causal, [-1] * len(self._parts) if lefts is None else lefts, out=out)

    def _made(
        self,
        q: Tensor,
        causal: bool,
        lefts: Sequence[int],
        sinks: int = 0,
        chosen: tuple[int | None, int | None] = (None, None),
        out: Tensor | None = None,
    ) -> Ready:
        """As `over`, and the first `sinks`; or the entries at `chosen`, of which those of a lane begin where its second
        says (addresses of int64)."""
        h, g, t, _ = q.shape
        levels = max(self._levels) + 1
        out = q.new_empty(h, g, t, self._width) if out is None else out
        more, lse = q.new_zeros(levels - 1, h, g, t, self._width), torch.empty(levels, h, g, t, dtype=torch.float32)
        if levels > 1:  # of which not every lane has a part
            lse[1:].fill_(-torch.inf)
        queries, kind, threads = q.data_ptr(), KINDS[q.dtype], torch.get_num_threads()
        size, strides = q.element_size(), q.stride()
        lane, group, token = strides[0] * size, strides[1] * size, strides[2] * size
        for call, level, left in zip(self._calls, self._levels, lefts, strict=True):
            call.q, call.q_kind, call.groups, call.tokens = queries, kind, g, t
            call.q_lane, call.q_group, call.q_token = lane, group, token
            call.causal, call.left, call.sinks = causal and not level, left, sinks
            call.chosen, call.chosen_first = chosen
            place = (more[level - 1] if level else out).data_ptr()
            call.out, call.lse, call.threads = place, lse[level].data_ptr(), threads
        return Ready(self, out, more, lse)
