"""A decoder layer's part of a prompt but for its attention: a matrix product as `ops.linear` has it, and between the
products all that is done row by row, by the native kernels (native/prompt.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from headwise.kernels import ops
from headwise.kernels.native.layer import Enter, EnterCall, Leave, LeaveCall, Matrix
from headwise.kernels.native.library import library

_Rows = ctypes.c_void_p


class PromptEnter:
    """Hidden states of many rows to queries, keys and values."""

    def __init__(self, enter: Enter, level: str | None = None) -> None:
        self.enter, self._library = enter, library(level)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [b, t, hidden], cos and sin [1 or b, t, turned] -> q [b, H, t, d], k [b, h, t, d], v [b, h, t, e]."""
        parts, cos, sin = self.enter.parts, cos.contiguous(), sin.contiguous()
        new = self.enter.room(x.shape[0], x.shape[1], x.dtype)
        call: EnterCall = self.enter.into(*new)
        call.x, call.threads = x.data_ptr(), torch.get_num_threads()
        self.enter.turn(call, cos, sin)
        normed = x
        if parts.norm is not None:
            normed = torch.empty_like(x)
            self._library.headwise_prompt_norm(ctypes.byref(call), _Rows(normed.data_ptr()))
        products = [_product(normed, by) for by in (parts.q, parts.k, parts.v)]
        places = (_Rows * 3)(*[one.data_ptr() for one in products])
        self._library.headwise_prompt_heads(ctypes.byref(call), places)
        return new


class PromptLeave:
    """Attention's answer to many rows, to the layer's hidden states."""

    def __init__(self, leave: Leave, level: str | None = None) -> None:
        self.leave, self._library = leave, library(level)

    def __call__(self, attended: Tensor, x: Tensor) -> Tensor:
        """attended [b, H, t, e], and the layer's input x [b, t, hidden] -> [b, t, hidden]."""
        parts, attended = self.leave.parts, attended.contiguous()
        batch, heads, tokens, width = attended.shape
        call: LeaveCall = self.leave.of(attended)
        call.x, call.threads = x.data_ptr(), torch.get_num_threads()
        laid = x.new_empty(batch, tokens, heads * width)
        self._library.headwise_prompt_lay(ctypes.byref(call), _Rows(laid.data_ptr()))
        stream, normed = _product(laid, parts.o), torch.empty_like(x)
        place = _Rows(stream.data_ptr())
        self._library.headwise_prompt_middle(ctypes.byref(call), place, place, _Rows(normed.data_ptr()))
        gate, up = _product(normed, parts.gate), _product(normed, parts.up)
        self._library.headwise_prompt_gate(ctypes.byref(call), _Rows(gate.data_ptr()), _Rows(up.data_ptr()))
        summed, out = _product(gate, parts.down), torch.empty_like(x)
        call.out = out.data_ptr()
        self._library.headwise_prompt_last(ctypes.byref(call), _Rows(summed.data_ptr()), place)
        return out


def _product(x: Tensor, by: Matrix) -> Tensor:
    """x [b, t, inner] times the weights: [b, t, outer], without gaps."""
    return ops.linear(x, by.weight, by.bias).contiguous()
