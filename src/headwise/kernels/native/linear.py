"""A linear layer that streams its weights in steps of a few rows, by the native kernel (native/linear.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from headwise.kernels.native.held import KINDS
from headwise.kernels.native.library import library, unusable
from headwise.kernels.packed import Packed

MOST_ROWS = 16  # rows of a step; more are a prompt, where a matrix product is the better way
TYPES = (torch.bfloat16, torch.float32)


class Matrix(ctypes.Structure):
    """`Matrix` of native/inputs.hpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale", "low")),
        ("outer", ctypes.c_int64),
        ("packing", ctypes.c_int32),
    ]

    @classmethod
    def of(cls, weight: Tensor | Packed, bias: Tensor | None) -> Matrix:
        """The addresses of weights [outer, inner], which have to stay where they are."""
        add = None if bias is None else bias.data_ptr()
        if isinstance(weight, Tensor):
            return cls(weight.data_ptr(), add, None, None, len(weight), 0)
        low = None if weight.low is None else weight.low.data_ptr()
        packing = 1 if weight.low is None else 2  # `Packing` there
        return cls(weight.codes.data_ptr(), add, weight.scale.data_ptr(), low, len(weight), packing)


class _Call(ctypes.Structure):
    """`Linear` of native/linear.cpp."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("by", Matrix),
        ("rows", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


def refuse(x: Tensor, weight: Tensor | Packed, bias: Tensor | None) -> list[str]:
    """Why `x [..., inner]` does not stream `weight [outer, inner]`; empty if it does."""
    if x.numel() > MOST_ROWS * weight.shape[1]:
        return [f"more than {MOST_ROWS} rows: a matrix product is quicker"]
    stored = (weight,) if isinstance(weight, Tensor) else weight.tensors
    if x.dtype != weight.dtype or x.dtype not in TYPES or x.device.type != "cpu":
        return [f"no native product of {x.dtype} on {x.device.type} with {weight.dtype}"]
    if not all(one.is_contiguous() and one.device.type == "cpu" for one in stored):
        return ["weights with gaps, or on another device than the CPU"]
    if torch.is_grad_enabled() and (x.requires_grad or any(one.requires_grad for one in stored)):
        return ["gradients: the native kernels have none"]
    return [why] if (why := unusable()) else []


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None, level: str | None = None) -> Tensor:
    """`x [..., inner]` times `weight [outer, inner]` transposed, plus `bias [outer]`: `[..., outer]`, on the CPU.

    Sums are float32, rounded once. All of one type, bfloat16 or float32, and contiguous; packed weights are turned to
    float32 as they are read.
    """
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    out = flat.new_empty(flat.shape[0], weight.shape[0])
    call = _Call(flat.data_ptr(), out.data_ptr(), Matrix.of(weight, bias), flat.shape[0], weight.shape[1])
    call.kind, call.threads = KINDS[x.dtype], torch.get_num_threads()
    library(level).headwise_linear(ctypes.byref(call))
    return out.view(*x.shape[:-1], weight.shape[0])
