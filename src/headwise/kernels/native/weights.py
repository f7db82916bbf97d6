"""How much attention a few new tokens give to each key, by the native kernel (native/weights.cpp)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.forms import Rule, Scoring, Where
from headwise.kernels.native.decode import MOST_ROWS, MOST_TOKENS
from headwise.kernels.native.held import KINDS, CHeld, Held, refuse_keys, refuse_queries
from headwise.kernels.native.library import library, unusable


class _Call(ctypes.Structure):
    """`Weights` of native/weights.cpp."""

    _fields_ = [
        ("held", CHeld),
        ("q", ctypes.c_void_p),
        ("q_lane", ctypes.c_int64),
        ("q_group", ctypes.c_int64),
        ("q_token", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("causal", ctypes.c_int64),
        ("keys", ctypes.c_int64),
        ("sums", ctypes.c_int64),
        ("mass", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("q_kind", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


def few(q: Tensor, where: Where) -> bool:
    """Whether `q [h, g, t, d]` is a step of decoding over everything."""
    lowered = where.lowered
    everything = isinstance(lowered, Rule) and lowered.left is None
    return everything and q.shape[2] <= MOST_TOKENS and q.shape[1] * q.shape[2] <= MOST_ROWS


@dataclass(frozen=True)
class Weights:
    """Attention of `q [h, g, t, d]`, the last t of n tokens, on `k [h, n, d]`; accepted by `refuse` before.

    level: the instruction level to use, for tests; None: the best that works here.
    """

    q: Tensor
    k: Tensor
    where: Where
    scoring: Scoring
    level: str | None = None

    def refuse(self) -> list[str]:
        """Why the native kernel does not take these; empty if it does."""
        q, k = self.q, self.k
        if why := unusable():
            return [why]
        reasons = refuse_queries(q, self.scoring) + refuse_keys(q, k)
        if not few(q, self.where):
            reasons.append(f"{q.shape[2]} tokens over {type(self.where).__name__}: no step of decoding")
        return reasons

    def column_mass(self, lse: Tensor | None = None) -> Tensor:
        """Probability that each key got, summed over queries and group: `[h, n]`. lse: known, and not needed."""
        return self._summed(1)[:, 0]

    def by_query(self) -> Tensor:
        """Probability that each key got of each query position, summed over the group: `[h, t, n]`."""
        return self._summed(self.q.shape[2])

    def _summed(self, sums: int) -> Tensor:
        """`sums` sums `[h, sums, n]`: one, or one per query position."""
        q, held = self.q, Held.dense(self.k, self.k)
        (h, g, t), n, size = q.shape[:3], self.k.shape[1], q.element_size()
        mass = torch.empty(h, sums, n, dtype=torch.float32)
        call = _Call(held=held.c, q=q.data_ptr(), groups=g, tokens=t, causal=self.where.causal, keys=n)
        call.q_lane, call.q_group, call.q_token = (stride * size for stride in q.stride()[:3])
        call.sums, call.mass = sums, mass.data_ptr()
        sinks = None if self.scoring.sinks is None else self.scoring.sinks.logits.float().contiguous()
        call.sinks = None if sinks is None else sinks.data_ptr()
        call.scale, call.softcap = self.scoring.scale, self.scoring.softcap or 0.0
        call.q_kind, call.threads = KINDS[q.dtype], torch.get_num_threads()
        library(self.level).headwise_weights(ctypes.byref(call))
        return mass
