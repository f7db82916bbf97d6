"""The attention that the compiled kernels compute, over tensors or pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.forms import Attended, Full, Scoring, Where
from headwise.kernels.native import decode, prefill
from headwise.kernels.native.held import Held, refuse_queries, refuse_side, refuse_width
from headwise.kernels.native.library import best_level, passed_over, unusable
from headwise.kernels.request import EDITED, PagesRequest, PartsRequest, Request

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
        request = Request(ones, ones[0].expand(1, 2, 16), ones[0].expand(1, 2, 16), Full(), Scoring(1.0))
        told = "" if self.level or not passed_over() else f" ({passed_over()})"
        return bool(
            (self.attend(request).out == 1).all()
        ), f"compiled kernels, level {self.level or best_level()}{told}"

    def refuse(self, request: Request) -> list[str]:
        """Reasons not to take this request; empty to accept."""
        k, v = request.k, request.v
        reasons = self._refuse(request.q, request.where, request.scoring)
        reasons += refuse_width(k.shape[2], v.shape[2])
        if k.stride(2) != 1 or v.stride(2) != 1:
            reasons.append("the channels of k or v do not lie side by side; call .contiguous()")
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            reasons.append(NO_GRADIENTS)
        return reasons

    def attend(self, request: Request) -> Attended:
        """Attention of a request."""
        return self._attend(request.q, Held.dense(request.k, request.v), request.where, request.scoring)

    def refuse_pages(self, request: PagesRequest) -> list[str]:
        """Reasons not to read these pages in place; empty to accept."""
        reasons = self._refuse(request.q, request.where, request.scoring)
        return reasons + refuse_side(request.paged.keys) + refuse_side(request.paged.values)

    def attend_pages(self, request: PagesRequest) -> Attended:
        """Attention over pages, each lane with its own length, nothing copied."""
        attended = self._attend(request.q, Held.paged(request.paged), request.where, request.scoring)
        return attended.without(request.paged.skip)

    def refuse_prepare(self, request: PartsRequest) -> list[str]:
        """Reasons not to read these pages again and again in steps of decoding; empty to accept."""
        if not decode.fits(request.q, request.where):
            return [f"{request.q.shape[2]} tokens over {type(request.where).__name__}: no step of decoding"]
        if len({(part.paged.values.width, part.paged.skip) for part in request.parts}) > 1:
            return ["parts whose values differ in width"]
        return [reason for part in request.each() for reason in self.refuse_pages(part)]

    def prepare_pages(self, request: PartsRequest) -> decode.Decode:
        """The call that reads these pages for queries such as the request's, while they lie where they do."""
        parts = [(Held.paged(part.paged), part.lanes, part.level) for part in request.parts]
        return decode.Decode(parts, request.scoring, self.level, request.parts[0].paged.skip)

    def _refuse(self, q: Tensor, where: Where, scoring: Scoring) -> list[str]:
        if why := unusable(self.level):
            return [why]
        if scoring.edit is not None:
            return [EDITED]
        reasons = refuse_queries(q, scoring) if decode.fits(q, where) else prefill.refuse(q, where, scoring)
        if torch.is_grad_enabled() and q.requires_grad:
            reasons.append(NO_GRADIENTS)
        return reasons

    def _attend(self, q: Tensor, held: Held, where: Where, scoring: Scoring) -> Attended:
        kernel = decode.decode if decode.fits(q, where) else prefill.prefill
        return kernel(q, held, where, scoring, self.level)
