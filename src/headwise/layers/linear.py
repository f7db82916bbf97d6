"""Linear layers that stream their weights in steps of a few rows.

A decoding step reads every weight once for one row; torch's bfloat16 product for one row falls well short of
that (`benchmarks/step.py`). The native kernel streams the weights as they lie; prompts keep torch's matrix product.
"""

from __future__ import annotations

import ctypes
import warnings

import torch
from torch import Tensor, nn

from headwise.cache.pages import HUGE, copied
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


class StreamedLinear(nn.Linear):
    """An `nn.Linear` with the same parameters; up to MOST_ROWS rows without gradients take the native kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., in_features]` -> `[..., out_features]`."""
        few = x.numel() <= MOST_ROWS * self.in_features
        if few and x.dtype == self.weight.dtype and not torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        return super().forward(x)


def stream_linears(model: nn.Module) -> int:
    """Let the model's linear layers stream their weights in decoding steps; returns how many do now.

    Replaces every plain `nn.Linear` on the CPU, in bfloat16 or float32, by a `StreamedLinear` around the same
    parameters, whose large weights move, one at a time, to memory that streams faster. Results are those of torch up to
    the rounding of one sum. Where there are no native kernels all stay as they are, with a warning.
    """
    if why := unusable():
        warnings.warn(f"linear layers keep torch's product: {why}", stacklevel=2)
        return 0
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype in TYPES and child.weight.device.type == "cpu"
    ]
    for parent, name, child in found:
        if child.weight.is_contiguous():
            with torch.device("meta"):
                streamed = StreamedLinear(child.in_features, child.out_features, child.bias is not None)
            streamed.weight, streamed.bias = child.weight, child.bias
            if child.weight.nbytes >= HUGE:
                child.weight.data = copied(child.weight.data)
            streamed.train(child.training)
            setattr(parent, name, streamed)
    return sum(isinstance(one, StreamedLinear) for one in model.modules())
