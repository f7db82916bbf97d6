"""A decoder layer's step but for its attention, in two calls of the native kernels (native/layer.cpp).

What a layer's calls take is filled in once; of it each call takes a copy, so that threads do not meet, and puts in the
addresses that change.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwise.kernels.native.held import KINDS
from headwise.kernels.native.library import library, unusable
from headwise.kernels.native.linear import TYPES
from headwise.kernels.native.linear import Matrix as _Matrix
from headwise.kernels.packed import Packed

MOST_ROWS = 64  # rows of a step; more are a prompt, where a matrix product is the better way
MANNERS = ("rounded", "at once", "plus one")  # how a norm's weight is applied: `Manner` of native/norm.hpp
ACTIVATIONS = ("silu", "gelu_tanh")  # `Activation` of native/layer.cpp

_Address = ctypes.c_void_p
_Count = ctypes.c_int64


@dataclass(frozen=True)
class Matrix:
    """A linear layer: weight [outer, inner], bias [outer] or None."""

    weight: Tensor | Packed
    bias: Tensor | None = None


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm: weight [width], what is added to the mean square, one of MANNERS."""

    weight: Tensor
    eps: float
    manner: str


@dataclass(frozen=True)
class Before:
    """What comes before attention. Heads are of `width` channels, those of values of `value_width`; the norms of q and
    k are of a head, or of all heads together. turned: whether q and k are rotated by their positions."""

    q: Matrix
    k: Matrix
    v: Matrix
    norm: Norm | None
    q_norm: Norm | None
    k_norm: Norm | None
    width: int
    value_width: int
    turned: bool


@dataclass(frozen=True)
class After:
    """What comes after attention: the output, and activation(gate) * up, down. Each is added to the layer's input
    times `factor`, after a norm where there is one."""

    o: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix
    after_attention: Norm | None
    before_mlp: Norm | None
    after_mlp: Norm | None
    activation: str
    factor: float


class _Norm(ctypes.Structure):
    """`Norm` of native/norm.hpp."""

    _fields_ = [("weight", _Address), ("eps", ctypes.c_float), ("manner", ctypes.c_int32)]


class EnterCall(ctypes.Structure):
    """`Enter` of native/layer.cpp."""

    _fields_ = [
        *((name, _Address) for name in ("x", "cos", "sin", "q", "k", "v")),
        *((name, _Matrix) for name in ("to_q", "to_k", "to_v")),
        *((name, _Norm) for name in ("norm", "q_norm", "k_norm")),
        *((name, _Count) for name in ("rows", "tokens", "hidden", "width", "value_width")),
        *((name, _Count) for name in ("turned", "turns", "q_normed", "k_normed")),
        *((name, ctypes.c_int32) for name in ("kind", "turn_kind", "threads")),
    ]


class LeaveCall(ctypes.Structure):
    """`Leave` of native/layer.cpp."""

    _fields_ = [
        *((name, _Address) for name in ("attended", "x", "out")),
        *((name, _Matrix) for name in ("o", "gate", "up", "down")),
        *((name, _Norm) for name in ("after_attention", "before_mlp", "after_mlp")),
        *((name, _Count) for name in ("rows", "tokens", "heads", "width", "hidden")),
        ("factor", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("activation", "kind", "threads")),
    ]


def refuse(plain: Sequence[Tensor], packed: Sequence[Tensor] = ()) -> str:
    """Why weights, all that a layer has, cannot be read by the native calls; empty if they can. packed: what those in
    whole numbers are stored in."""
    kinds = {str(one.dtype).removeprefix("torch.") for one in plain}
    if len(kinds) > 1 or any(one.dtype not in TYPES for one in plain):
        return f"weights of type {' and '.join(sorted(kinds))}, not all bfloat16 or all float32"
    tensors = (*plain, *packed)
    if any(one.device.type != "cpu" for one in tensors):
        return "weights on another device than the CPU"
    if any(type(one) not in (Tensor, nn.Parameter) for one in tensors):
        return "weights that are no plain tensors"
    if not all(one.is_contiguous() for one in tensors):
        return "weights with gaps between their rows"
    return unusable()


class Enter:
    """Hidden states to queries, keys and values."""

    def __init__(self, parts: Before, level: str | None = None) -> None:
        self.parts = parts  # held, as only addresses are filled in
        self.turned, self.widths = parts.turned, (parts.width, parts.width, parts.value_width)
        matrices = parts.q, parts.k, parts.v
        self.heads = [len(one.weight) // width for one, width in zip(matrices, self.widths, strict=True)]
        self.run = library(level).headwise_enter
        call = EnterCall(hidden=parts.q.weight.shape[1], width=parts.width, value_width=parts.value_width, turns=1)
        call.to_q, call.to_k, call.to_v = (_Matrix.of(one.weight, one.bias) for one in matrices)
        call.norm, call.q_norm, call.k_norm = map(_norm, (parts.norm, parts.q_norm, parts.k_norm))
        call.q_normed, call.k_normed = (0 if one is None else len(one.weight) for one in (parts.q_norm, parts.k_norm))
        call.kind = KINDS[parts.q.weight.dtype]
        self.filled = call

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [b, t, hidden], cos and sin [1 or b, t, turned] -> q [b, H, t, d], k [b, h, t, d], v [b, h, t, e]."""
        new = self.room(x.shape[0], x.shape[1], x.dtype)
        call, cos, sin = self.into(*new), cos.contiguous(), sin.contiguous()
        call.x, call.threads = x.data_ptr(), torch.get_num_threads()
        self.turn(call, cos, sin)
        self.run(ctypes.byref(call))
        return new

    def room(self, batch: int, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Where queries, keys and values go."""
        places = zip(self.heads, self.widths, strict=True)
        q, k, v = (torch.empty((batch, heads, tokens, width), dtype=dtype) for heads, width in places)
        return q, k, v

    def into(self, q: Tensor, k: Tensor, v: Tensor) -> EnterCall:
        """The call whose results go there."""
        call = EnterCall.from_buffer_copy(self.filled)
        call.q, call.k, call.v, call.tokens = q.data_ptr(), k.data_ptr(), v.data_ptr(), q.shape[2]
        call.rows = q.shape[0] * q.shape[2]
        return call

    def turn(self, call: EnterCall, cos: Tensor, sin: Tensor) -> None:
        """Let a call rotate by angles without gaps, which stay as they are until it was made."""
        if self.turned:
            call.cos, call.sin, call.turn_kind = cos.data_ptr(), sin.data_ptr(), KINDS[cos.dtype]
            call.turned, call.turns = cos.shape[-1], cos.shape[0] * cos.shape[1]


class Leave:
    """Attention's answer to the layer's hidden states."""

    def __init__(self, parts: After, level: str | None = None) -> None:
        self.parts = parts
        self.run = library(level).headwise_leave
        call = LeaveCall(hidden=len(parts.o.weight), factor=parts.factor)
        matrices = parts.o, parts.gate, parts.up, parts.down
        call.o, call.gate, call.up, call.down = (_Matrix.of(one.weight, one.bias) for one in matrices)
        norms = parts.after_attention, parts.before_mlp, parts.after_mlp
        call.after_attention, call.before_mlp, call.after_mlp = map(_norm, norms)
        call.activation = ACTIVATIONS.index(parts.activation)
        call.kind = KINDS[parts.o.weight.dtype]
        self.filled = call

    def __call__(self, attended: Tensor, x: Tensor) -> Tensor:
        """attended [b, H, t, e], and the layer's input x [b, t, hidden] -> [b, t, hidden]."""
        attended, out = attended.contiguous(), torch.empty_like(x)
        call = self.of(attended)
        call.x, call.out, call.threads = x.data_ptr(), out.data_ptr(), torch.get_num_threads()
        self.run(ctypes.byref(call))
        return out

    def of(self, attended: Tensor) -> LeaveCall:
        """The call for what lies there, without gaps."""
        call = LeaveCall.from_buffer_copy(self.filled)
        batch, call.heads, call.tokens, call.width = attended.shape
        call.attended, call.rows = attended.data_ptr(), batch * call.tokens
        return call


def _norm(one: Norm | None) -> _Norm:
    return _Norm() if one is None else _Norm(one.weight.data_ptr(), one.eps, MANNERS.index(one.manner))
