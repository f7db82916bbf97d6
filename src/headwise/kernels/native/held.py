"""The C++ kernels' view of keys and values: addresses, strides, element kinds (native/held.hpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.forms import Paged, Scoring, Side

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Kinds of the codecs that the kernels read in place, beside "plain", and the planes they must have.
CODECS = {"int8": 3, **{f"int{bits}/{group}": kind for bits, kind in ((4, 4), (2, 5)) for group in (16, 32, 64, 128)}}
PLANES = {3: {"data", "scale"}, 4: {"data", "scale", "minimum"}, 5: {"data", "scale", "minimum"}}
WIDEST = 512  # channels
SMALLEST = 1e-30  # scale and cap of scores


def refuse_queries(q: Tensor, scoring: Scoring) -> list[str]:
    """Why queries `[h, g, t, d]` are not taken; empty if they are."""
    reasons = []
    if q.device.type != "cpu":
        reasons.append(f"the native kernels run on the CPU, not on {q.device.type}")
    if q.dtype not in KINDS:
        reasons.append(f"no native kernel for {q.dtype}")
    if q.stride(3) != 1:
        reasons.append("the channels of q do not lie side by side; call .contiguous()")
    for name, value in (("scale", scoring.scale), ("softcap", scoring.softcap)):
        if value is not None and not SMALLEST < value < 1 / SMALLEST:  # in float32, of which 0 caps nothing
            reasons.append(f"{name}={value}: the native kernels take {SMALLEST} to {1 / SMALLEST}")
    return reasons


def refuse_keys(q: Tensor, k: Tensor) -> list[str]:
    """Why scores of queries `[h, g, t, d]` on plain keys `[h, n, d]` are not computed; empty if they are."""
    reasons = refuse_width(k.shape[2])
    if q.dtype != k.dtype or q.device != k.device:
        reasons.append(f"q and k differ: {q.dtype} on {q.device}, {k.dtype} on {k.device}")
    if k.stride(2) != 1:
        reasons.append("the channels of k do not lie side by side; call .contiguous()")
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        reasons.append("gradients: the native kernels have none")
    return reasons


class CSide(ctypes.Structure):
    """`Side` of native/held.hpp."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("minimum", ctypes.c_void_p),
        ("lane", ctypes.c_int64),
        ("token", ctypes.c_int64),
        ("scale_token", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("frames", ctypes.c_void_p),
    ]


class CHeld(ctypes.Structure):
    """`Held` of native/held.hpp."""

    _fields_ = [
        ("key", CSide),
        ("value", CSide),
        ("length", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("page", ctypes.c_int64),
        ("lanes", ctypes.c_int64),
    ]


def numbers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """An int64 array for C."""
    return (ctypes.c_int64 * max(1, len(values)))(*values)


def address(array: ctypes.Array[ctypes.c_int64]) -> int:
    """Where an array lies."""
    return ctypes.addressof(array)


def refuse_width(*widths: int) -> list[str]:
    """Why keys or values of these widths are not read."""
    reasons = []
    for width in widths:
        if width % 16 or not 0 < width <= WIDEST:
            reasons.append(f"width {width} is not a multiple of 16 up to {WIDEST}")
    return reasons


def _dense_side(x: Tensor) -> CSide:
    size = x.element_size()
    return CSide(
        data=x.data_ptr(), lane=x.stride(0) * size, token=x.stride(1) * size, width=x.shape[2], kind=KINDS[x.dtype]
    )


class Held:
    """A `CHeld` with everything it points to, so that nothing is freed while a kernel reads."""

    def __init__(self, key: CSide, value: CSide, lengths: Sequence[int], firsts: Sequence[int]) -> None:
        self.lengths, self._firsts = numbers(lengths), numbers(firsts)  # by lane
        self._table: Tensor | None = None
        self._frames: tuple[Tensor | None, Tensor | None] = (None, None)
        self.c = CHeld(key=key, value=value, length=address(self.lengths), first=address(self._firsts))
        self.c.page, self.c.lanes = 1, len(lengths)

    @classmethod
    def dense(cls, k: Tensor, v: Tensor) -> Held:
        """Of `k [h, n, d]` and `v [h, n, e]`, channels side by side."""
        lanes, tokens = k.shape[:2]
        return cls(_dense_side(k), _dense_side(v), [tokens] * lanes, [0] * lanes)

    @classmethod
    def paged(cls, paged: Paged) -> Held:
        """Of pages, read in place."""
        page = paged.page if paged.table is None else 1
        starts = [start * page for start in paged.starts]
        held = cls(_paged_side(paged.keys), _paged_side(paged.values), paged.lengths, starts)
        held._frames = paged.keys.frames, paged.values.frames
        if paged.table is not None:
            held._table = paged.table.to(torch.int32)
            held.c.table, held.c.page = held._table.data_ptr(), paged.page
        return held


def _paged_side(side: Side) -> CSide:
    data = side.planes["data"]
    kind = KINDS[data.dtype] if side.codec == "plain" else CODECS[side.codec]
    out = CSide(data=data.data_ptr(), token=data.stride(1) * data.element_size(), width=side.width, kind=kind)
    if "scale" in side.planes:
        scale = side.planes["scale"]
        out.scale, out.scale_token = scale.data_ptr(), scale.stride(1) * scale.element_size()
        out.group = side.width // scale.shape[2]
    if "minimum" in side.planes:
        out.minimum = side.planes["minimum"].data_ptr()
    if side.frames is not None:
        out.frames = side.frames.data_ptr()
    return out


def refuse_side(side: Side) -> list[str]:
    """Why the pages of a side are not read in place; empty if they are."""
    data = side.planes.get("data")
    if side.codec == "plain":
        known = data is not None and data.dtype in KINDS
    else:
        known = side.codec in CODECS and set(side.planes) == PLANES[CODECS[side.codec]]
    if not known or data is None:
        return [f"codec '{side.codec}' in {None if data is None else data.dtype} has no kernel that reads it in place"]
    if data.device.type != "cpu" or not all(plane.is_contiguous() for plane in side.planes.values()):
        return ["pages are read on the CPU, and contiguous"]
    if "scale" in side.planes:
        groups = side.planes["scale"].shape[2]
        if side.width % groups or (groups > 1 and side.width // groups % 32):
            return [f"{groups} scales for {side.width} channels: groups must be multiples of 32 channels"]
    return refuse_width(side.width)
