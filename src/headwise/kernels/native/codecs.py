"""Integer codecs by the native kernel (native/codecs.cpp): the planes that the torch codecs give, bit for bit."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from headwise.kernels.native.held import KINDS, WIDEST
from headwise.kernels.native.library import library, unusable

WORTH = 1 << 14  # elements from which a second thread pays


class _Call(ctypes.Structure):
    """`Coding` of native/codecs.cpp."""

    _fields_ = [
        ("wide", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("minimum", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


def refuse_encode(x: Tensor, bits: int, group: int, minimum: bool) -> list[str]:
    """Why `x [..., n, width]` is not encoded here; empty if it is."""
    return _refuse(x, x.shape[-1], group, x.dtype, minimum)


def refuse_decode(planes: dict[str, Tensor], width: int, group: int, dtype: torch.dtype) -> list[str]:
    """Why planes are not decoded here; empty if they are."""
    if "minimum" not in planes:
        return ["symmetric codes have no native decoder"]
    return _refuse(planes["data"], width, group, dtype, True)


def _refuse(x: Tensor, width: int, group: int, dtype: torch.dtype, minimum: bool) -> list[str]:
    """Why vectors of `width` elements of `dtype`, lying where `x` lies, are not coded here."""
    if why := unusable():
        return [why]
    if x.device.type != "cpu" or dtype not in KINDS or not 0 < width <= WIDEST or x.requires_grad:
        return [f"no native codes for {width} channels of {dtype} on {x.device.type}, or with gradients"]
    return [f"groups of {group} channels are no multiples of 16"] if minimum and group % 16 else []


def encode(x: Tensor, bits: int, group: int, minimum: bool, level: str | None = None) -> dict[str, Tensor]:
    """Planes of `x [..., n, width]`: `data [..., n, width * bits / 8]`, `scale` and `minimum [..., n, groups]`.

    With a minimum: code = (x - minimum) / scale, from 0 to 2^bits - 1. Without: symmetric around 0, bits = 8.
    """
    x = x.contiguous()
    groups = -(-x.shape[-1] // group)
    planes = {
        "data": x.new_empty(*x.shape[:-1], x.shape[-1] * bits // 8, dtype=torch.uint8 if minimum else torch.int8),
        "scale": x.new_empty(*x.shape[:-1], groups, dtype=torch.float16),
    }
    if minimum:
        planes["minimum"] = torch.empty_like(planes["scale"])
    _run(library(level).headwise_encode, x, planes, bits, group)
    return planes


def decode(planes: dict[str, Tensor], width: int, group: int, dtype: torch.dtype, level: str | None = None) -> Tensor:
    """`[..., n, width]` in `dtype` from the planes, minimum among them, that `encode` gave."""
    planes = {name: plane.contiguous() for name, plane in planes.items()}
    data = planes["data"]
    x = data.new_empty(*data.shape[:-1], width, dtype=dtype)
    _run(library(level).headwise_decode_codes, x, planes, 8 * data.shape[-1] // width, group)
    return x


def _run(kernel: ctypes._FuncPointer, x: Tensor, planes: dict[str, Tensor], bits: int, group: int) -> None:
    places = {name: plane.data_ptr() for name, plane in planes.items()}
    width = x.shape[-1]
    call = _Call(wide=x.data_ptr(), rows=x.numel() // width, width=width, group=group, bits=bits, **places)
    call.kind, call.threads = KINDS[x.dtype], torch.get_num_threads() if x.numel() >= WORTH else 1
    kernel(ctypes.byref(call))
