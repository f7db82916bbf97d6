"""The backend that gives requests on the CPU to the compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.forms.attended import Attended
from headwise.forms.paged import Paged
from headwise.forms.where import Full, Where
from headwise.kernels.native import decode, prefill
from headwise.kernels.native.held import Held, Softmax, refuse_queries, refuse_side, refuse_width
from headwise.kernels.native.library import best_level, passed_over, unusable
from headwise.kernels.request import Request

NO_GRADIENTS = "gradients: the native kernels have none"


@dataclass(frozen=True)
class Native:
    """Prompts and decoding, over tensors or pages.

    level: the instruction level, forced by tests; None: the best that works here.
    """

    level: str | None = None

    name = "native"

    def available(self) -> tuple[bool, str]:
        """Averages two equal keys at the level in use, names it, and tells why it is not a higher one."""
        if why := unusable(self.level):
            return False, why
        ones = torch.ones(1, 1, 1, 16)
        got = self(Request(ones, ones[0].expand(1, 2, 16), ones[0].expand(1, 2, 16), Full(), 1.0)).out
        told = "" if self.level or not passed_over() else f" ({passed_over()})"
        return bool((got == 1).all()), f"compiled kernels, level {self.level or best_level()}{told}"

    def refuse(self, request: Request) -> list[str]:
        """Reasons not to take this request; empty to accept."""
        k, v = request.k, request.v
        reasons = self._refuse(request.q, request.where, Softmax(request.scale, request.softcap))
        reasons += refuse_width(k.shape[2], v.shape[2])
        if k.stride(2) != 1 or v.stride(2) != 1:
            reasons.append("the channels of k or v do not lie side by side; call .contiguous()")
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            reasons.append(NO_GRADIENTS)
        return reasons

    def __call__(self, request: Request) -> Attended:
        held, softmax = Held.dense(request.k, request.v), Softmax(request.scale, request.softcap)
        return self._attend(request.q, held, request.where, softmax)

    def refuse_pages(self, q: Tensor, paged: Paged, where: Where, softmax: Softmax) -> list[str]:
        """Reasons not to read these pages in place; empty to accept."""
        return self._refuse(q, where, softmax) + refuse_side(paged.keys) + refuse_side(paged.values)

    def read_pages(self, q: Tensor, paged: Paged, where: Where, softmax: Softmax) -> Attended:
        """Attention of `q [h, g, t, d]` over pages, each lane with its own length, nothing copied."""
        return self._attend(q, Held.paged(paged), where, softmax)

    def _refuse(self, q: Tensor, where: Where, softmax: Softmax) -> list[str]:
        if why := unusable(self.level):
            return [why]
        reasons = refuse_queries(q, softmax) if decode.fits(q, where) else prefill.refuse(q, where, softmax)
        if torch.is_grad_enabled() and q.requires_grad:
            reasons.append(NO_GRADIENTS)
        return reasons

    def _attend(self, q: Tensor, held: Held, where: Where, softmax: Softmax) -> Attended:
        kernel = decode.decode if decode.fits(q, where) else prefill.prefill
        return kernel(q, held, where, softmax, self.level)
