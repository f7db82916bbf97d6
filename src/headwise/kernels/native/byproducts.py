"""What scores tell, by the native kernel: two passes over packed score tiles, no t x n memory (native/scores.cpp)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.errors import HeadwiseError
from headwise.forms import Causal, Scoring, Where
from headwise.kernels.native import prefill
from headwise.kernels.native.held import Held, refuse_keys
from headwise.kernels.native.library import library, unusable


class _Call(ctypes.Structure):
    """`Told` of native/scores.cpp."""

    _fields_ = [
        ("ask", prefill.CAsk),
        ("lse", ctypes.c_void_p),
        ("entropy", ctypes.c_void_p),
        ("mass", ctypes.c_void_p),
        ("peaks", ctypes.c_void_p),
        ("maxima", ctypes.c_void_p),
        ("keys", ctypes.c_int64),
        ("block", ctypes.c_int64),
    ]


@dataclass(frozen=True)
class Scores:
    """The scores of `q [h, g, t, d]` on `k [h, n, d]` that `where` shows, never drawn; accepted by `refuse` before.

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
        return prefill.refuse(q, self.where, self.scoring) + refuse_keys(q, k)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Log-sum-exp, -inf where nothing is seen, and entropy in nats of each query: `[h, g, t]` both.

        The kernel reads keys alone: sinks join what it found, and with the log-sum-exp the passes that are given it.
        """
        lse, entropy = (torch.empty(self.q.shape[:3], dtype=torch.float32) for _ in range(2))
        self._call("rows", lse=lse, entropy=entropy)
        sinks = self.scoring.sinks
        return (lse, entropy) if sinks is None else (sinks.joint(lse), sinks.entropy(entropy, lse))

    def column_mass(self, lse: Tensor | None = None) -> Tensor:
        """Probability that each key got, summed over queries and group: `[h, n]`. lse: of `rows`, where known."""
        mass = torch.zeros(self.k.shape[:2], dtype=torch.float32)
        self._call("columns", lse=self.rows()[0] if lse is None else lse.float().contiguous(), mass=mass)
        return mass

    def column_peaks(self) -> Tensor:
        """Highest probability that each key got of a query of each head, 0 where none sees it: `[h, g, n]`."""
        peaks = torch.full((*self.q.shape[:2], self.k.shape[1]), float("-inf"), dtype=torch.float32)
        self._call("peaks", lse=self.rows()[0], peaks=peaks)
        return peaks.exp2_()

    def block_maxima(self, block: int) -> Tensor:
        """Highest score of each query block on each key block, -inf where none: `[h, g, query_blocks, key_blocks]`.

        Of causal scores, in blocks of a multiple of 16; raises HeadwiseError for others.
        """
        if not isinstance(self.where, Causal) or block < 1 or block % prefill.BLOCK:
            form = type(self.where).__name__
            raise HeadwiseError(f"no native maxima of {form} in blocks of {block}; give Causal() and a multiple of 16")
        t, n = self.q.shape[2], self.k.shape[1]
        block = min(block, -(-n // prefill.BLOCK) * prefill.BLOCK)  # beyond, there is one block
        maxima = torch.full((*self.q.shape[:2], -(-t // block), -(-n // block)), float("-inf"), dtype=torch.float32)
        self._call("maxima", block, maxima=maxima)
        return maxima

    def _call(self, name: str, block: int = 0, **results: Tensor) -> None:
        ask = prefill.Ask(self.q, Held.dense(self.k, self.k), self.where, self.scoring)
        places = {result: tensor.data_ptr() for result, tensor in results.items()}
        call = _Call(ask=ask.c, keys=self.k.shape[1], block=block, **places)
        prefill.check(getattr(library(self.level), f"headwise_{name}")(ctypes.byref(call)))
