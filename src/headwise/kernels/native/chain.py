"""Decoder layers one after the other by one call of the kernels, attention included (native/chain.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.kernels.native.append import Append
from headwise.kernels.native.decode import Ready
from headwise.kernels.native.layer import Enter, Leave
from headwise.kernels.native.library import library


@dataclass(frozen=True)
class OneLayer:
    """One layer: queries, keys and values that it makes (see `Enter.room`), what writes these to its pools, what then
    reads them, and what follows. The calls are those of this layer alone."""

    enter: Enter
    new: tuple[Tensor, Tensor, Tensor]
    writes: tuple[Append, ...]
    ready: Ready
    leave: Leave

    @property
    def attended(self) -> Tensor:
        """What the queries will have read: [b, H, t, e]."""
        queries, out = self.new[0], self.ready.out[0]
        return out.view(*queries.shape[:3], out.shape[-1])


class _Layer(ctypes.Structure):
    """`Layer` of native/chain.cpp."""

    _fields_ = [
        ("enter", ctypes.c_void_p),
        ("writes", ctypes.c_void_p),
        ("write_count", ctypes.c_int64),
        ("reads", ctypes.c_void_p),
        ("leave", ctypes.c_void_p),
    ]


class Chain:
    """The calls of some layers, filled in once and made again while weights and pools lie where they do."""

    def __init__(self, layers: Sequence[OneLayer], level: str | None = None) -> None:
        self._parts, threads = tuple(layers), torch.get_num_threads()
        self._enters = [one.enter.into(*one.new) for one in layers]
        self._leaves = [one.leave.of(one.attended) for one in layers]
        for call in (*self._enters, *self._leaves):
            call.threads = threads
        self._writes = [_addresses(one.writes) for one in layers]
        self._layers = (_Layer * len(layers))()
        for i, (layer, one) in enumerate(zip(self._layers, layers, strict=True)):
            layer.enter, layer.leave = ctypes.addressof(self._enters[i]), ctypes.addressof(self._leaves[i])
            layer.writes, layer.write_count = ctypes.addressof(self._writes[i]), len(one.writes)
            layer.reads = ctypes.addressof(one.ready.decode.calls)
        self._run = library(level).headwise_chain

    def run(self, first: int, x: Tensor, outs: Sequence[Tensor], angles: Sequence[tuple[Tensor, Tensor]]) -> None:
        """The layers from `first` on, as many as there are `outs`: x [b, t, hidden] to outs[0], that to outs[1], and so
        on, each rotated by its own angles, cos and sin [1 or b, t, turned]; all without gaps. The writes and the reads
        of these layers have been told of this step."""
        for i, (out, turns) in enumerate(zip(outs, angles, strict=True), first):
            enter, leave = self._enters[i], self._leaves[i]
            enter.x = leave.x = x.data_ptr()
            leave.out = out.data_ptr()
            self._parts[i].enter.turn(enter, *turns)
            x = out
        self._run(ctypes.byref(self._layers, first * ctypes.sizeof(_Layer)), ctypes.c_int64(len(outs)))


def _addresses(writes: Sequence[Append]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * max(1, len(writes)))(*[ctypes.addressof(one.call) for one in writes])
