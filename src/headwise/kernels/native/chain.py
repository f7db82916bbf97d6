"""Decoder layers one after the other by one call of the kernels, attention included (native/chain.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.kernels.native.append import Append
from headwise.kernels.native.decode import Calls as CalledSets
from headwise.kernels.native.decode import Ready
from headwise.kernels.native.layer import Enter, Leave
from headwise.kernels.native.library import library


@dataclass(frozen=True)
class OneLayer:
    """One layer: queries, keys and values that it makes (see `Enter.room`), what writes these to its pools, what then
    reads them, a call a session, into attended [b, H, t, e], and what follows. The calls are those of this layer
    alone."""

    enter: Enter
    new: tuple[Tensor, Tensor, Tensor]
    writes: tuple[Append, ...]
    reads: tuple[Ready, ...]
    attended: Tensor
    leave: Leave


class _Layer(ctypes.Structure):
    """`Layer` of native/chain.cpp."""

    _fields_ = [
        ("enter", ctypes.c_void_p),
        ("writes", ctypes.c_void_p),
        ("write_count", ctypes.c_int64),
        ("reads", ctypes.c_void_p),
        ("read_count", ctypes.c_int64),
        ("joins", ctypes.c_void_p),
        ("join_count", ctypes.c_int64),
        ("leave", ctypes.c_void_p),
    ]


class Chain:
    """The calls of some layers, filled in once and made again while weights and pools lie where they do. None in the
    place of a layer that is computed otherwise."""

    def __init__(self, layers: Sequence[OneLayer | None], level: str | None = None) -> None:
        self._parts = [None if one is None else _Filled(one) for one in layers]
        self._layers = (_Layer * len(layers))(*[_Layer() if one is None else one.layer for one in self._parts])
        self._run = library(level).headwise_chain

    def run(self, first: int, x: Tensor, outs: Sequence[Tensor], angles: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The layers from `first` on, as many as there are `outs`: x [b, t, hidden] to outs[0], that to outs[1], and so
        on, each rotated by its own angles, cos and sin [1 or b, t, turned]; all without gaps. The writes and the reads
        of these layers have been told of this step."""
        for part, out, turns in zip(self._parts[first:], outs, angles, strict=False):
            assert part is not None, "a layer that is computed otherwise"
            part.enter.x = part.leave.x = x.data_ptr()
            part.leave.out = out.data_ptr()
            part.one.enter.turn(part.enter, *turns)
            x = out
        self._run(ctypes.byref(self._layers, first * ctypes.sizeof(_Layer)), ctypes.c_int64(len(outs)))


class _Filled:
    """The calls of one layer, and what names them."""

    def __init__(self, one: OneLayer) -> None:
        self.one, threads = one, torch.get_num_threads()
        self.enter, self.leave = one.enter.into(*one.new), one.leave.of(one.attended)
        self.enter.threads = self.leave.threads = threads
        joins = [own.levels for own in one.reads if own.levels is not None]
        self._writes, self._joins = _addresses([own.call for own in one.writes]), _addresses(joins)
        self._reads = (CalledSets * len(one.reads))(*[own.decode.calls for own in one.reads])
        self.layer = _Layer(
            enter=ctypes.addressof(self.enter),
            writes=ctypes.addressof(self._writes),
            write_count=len(one.writes),
            reads=ctypes.addressof(self._reads),
            read_count=len(one.reads),
            joins=ctypes.addressof(self._joins),
            join_count=len(joins),
            leave=ctypes.addressof(self.leave),
        )


def _addresses(every: Sequence[ctypes.Structure]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(1, len(every)))(*[ctypes.addressof(one) for one in every])
