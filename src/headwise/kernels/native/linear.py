"""A linear layer that streams its weights in steps of a few rows, by the native kernel (native/linear.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from headwise.kernels.native.held import KINDS
from headwise.kernels.native.library import library, unusable

MOST_ROWS = 16  # rows of a step; more are a prompt, where a matrix product is the better way
TYPES = (torch.bfloat16, torch.float32)


class _Call(ctypes.Structure):
    """`Linear` of native/linear.cpp."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("outer", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


def refuse(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[str]:
    """Why `x [..., inner]` does not stream `weight [outer, inner]`; empty if it does."""
    if x.numel() > MOST_ROWS * weight.shape[1]:
        return [f"more than {MOST_ROWS} rows: a matrix product is quicker"]
    if x.dtype != weight.dtype or x.dtype not in TYPES or x.device.type != "cpu" or not weight.is_contiguous():
        return [f"no native product of {x.dtype} on {x.device.type} with {weight.dtype}, or of weights with gaps"]
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return ["gradients: the native kernels have none"]
    return [why] if (why := unusable()) else []


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, level: str | None = None) -> Tensor:
    """`x [..., inner]` times `weight [outer, inner]` transposed, plus `bias [outer]`: `[..., outer]`, on the CPU.

    Sums are float32, rounded once. All of one type, bfloat16 or float32, and contiguous.
    """
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    out = flat.new_empty(flat.shape[0], weight.shape[0])
    call = _Call(x=flat.data_ptr(), weight=weight.data_ptr(), out=out.data_ptr(), rows=flat.shape[0])
    call.bias = None if bias is None else bias.data_ptr()
    call.inner, call.outer = weight.shape[1], weight.shape[0]
    call.kind, call.threads = KINDS[x.dtype], torch.get_num_threads()
    library(level).headwise_linear(ctypes.byref(call))
    return out.view(*x.shape[:-1], weight.shape[0])
