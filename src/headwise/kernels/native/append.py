"""New tokens written to the pages of a pool by one call, as its codecs write them (native/codecs.cpp)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from headwise.forms import Side
from headwise.kernels.native.held import CODECS, KINDS, WIDEST, address, numbers
from headwise.kernels.native.library import library, unusable
from headwise.kernels.request import PoolRequest


class _Stream(ctypes.Structure):
    """`Stream` of native/codecs.cpp."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("x_lane", ctypes.c_int64),
        ("x_token", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("minimum", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("frames", ctypes.c_void_p),
    ]


class _Call(ctypes.Structure):
    """`Append` of native/codecs.cpp."""

    _fields_ = [
        ("key", _Stream),
        ("value", _Stream),
        ("position", ctypes.c_void_p),
        ("position_lane", ctypes.c_int64),
        ("position_token", ctypes.c_int64),
        ("positions", ctypes.c_void_p),
        ("slot", ctypes.c_void_p),
        ("place", ctypes.c_void_p),
        ("mass", ctypes.c_void_p),
        ("notes", ctypes.c_void_p),
        ("note_width", ctypes.c_int64),
        ("lanes", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
    ]


def refuse(request: PoolRequest) -> list[str]:
    """Why tokens are not written to this pool by one call; empty if they are."""
    if why := unusable():
        return [why]
    reasons = [reason for side in (request.keys, request.values) for reason in _refuse_side(side, request.dtype)]
    if strange := set(request.beside) - {"position", "mass", "notes"}:
        reasons.append(f"planes {sorted(strange)} beside keys and values")
    return reasons


def _refuse_side(side: Side, dtype: torch.dtype) -> list[str]:
    data = side.planes.get("data")
    if side.codec not in ("plain", *CODECS) or data is None or dtype not in KINDS or data.device.type != "cpu":
        return [f"no native codes of '{side.codec}' for {dtype}"]
    if not 0 < side.width <= WIDEST or (side.codec == "plain" and data.dtype != dtype):
        return [f"{side.width} channels, or planes of another type than {dtype}"]
    return []


class Append:
    """The call: keys `[lanes, t, d]` and values `[lanes, t, e]` at positions `[lanes, t]` (int64), the first new token
    of each lane at one of `slots`. Made again while the pool lies where it did; it keeps no pool alive."""

    def __init__(self, request: PoolRequest, level: str | None = None) -> None:
        self._size, self._lanes, self._slots = request.dtype.itemsize, 0, numbers([])
        self._places: ctypes.Array[ctypes.c_int64] | None = None
        self._frames = request.keys.frames, request.values.frames  # to be there as long as this
        call = self.call = _Call(*(_stream(side, request.dtype) for side in (request.keys, request.values)))
        call.positions = request.beside["position"].data_ptr()
        if "mass" in request.beside:
            call.mass = request.beside["mass"].data_ptr()
        if "notes" in request.beside:
            call.notes, call.note_width = request.beside["notes"].data_ptr(), request.beside["notes"].shape[-1]
        self._place, self._run = ctypes.byref(call), library(level).headwise_append

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, slots: list[int]) -> None:
        """Write them."""
        if keys.stride(2) != 1 or values.stride(2) != 1:
            keys, values = keys.contiguous(), values.contiguous()
        self._take(keys, values)
        self.at(positions, slots)
        self._run(self._place)

    def of(self, keys: Tensor, values: Tensor, places: Sequence[int]) -> None:
        """From now on the call is one to be made by `chain`, of what lies in keys `[all lanes, t, d]` and values, of
        which the pool's lanes are those at `places`."""
        self._take(keys, values)
        self._places = numbers(places)
        self.call.place = address(self._places)

    def at(self, positions: Tensor, slots: list[int]) -> None:
        """Where they are to be written; positions stay as they are until they were."""
        call = self.call
        if len(slots) != self._lanes:
            self._lanes, self._slots = len(slots), numbers(slots)
            call.slot, call.lanes = address(self._slots), len(slots)
        self._slots[:] = slots  # type: ignore[assignment]  # ints, which ctypes converts
        call.position, (call.position_lane, call.position_token) = positions.data_ptr(), positions.stride()
        call.tokens = positions.shape[1]

    def _take(self, keys: Tensor, values: Tensor) -> None:
        call, size = self.call, self._size
        call.key.x, call.key.x_lane, call.key.x_token = keys.data_ptr(), keys.stride(0) * size, keys.stride(1) * size
        call.value.x = values.data_ptr()
        call.value.x_lane, call.value.x_token = values.stride(0) * size, values.stride(1) * size


def _stream(side: Side, dtype: torch.dtype) -> _Stream:
    data, scale, minimum = (side.planes.get(name) for name in ("data", "scale", "minimum"))
    out = _Stream(width=side.width, group=side.width, kind=KINDS[dtype])
    assert data is not None
    out.data = data.data_ptr()
    if scale is not None:
        out.scale, out.bits = scale.data_ptr(), 8 * data.shape[-1] // side.width
    if minimum is not None:
        out.minimum, out.group = minimum.data_ptr(), int(side.codec.partition("/")[2])
    if side.frames is not None:
        out.frames = side.frames.data_ptr()
    return out
