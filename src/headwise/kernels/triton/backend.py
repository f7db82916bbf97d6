"""The attention that Triton's kernels compute: decoding over pages of a cache, read where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from headwise.forms import Attended, Scoring, Side, Where
from headwise.kernels.request import EDITED, PagesRequest, Part, PartsRequest
from headwise.kernels.triton.decode import MOST_TOKENS, WIDEST, Decode, bits_of, fits

TYPES = (torch.float32, torch.bfloat16, torch.float16)
PLANES = {0: {"data"}, 8: {"data", "scale"}, 4: {"data", "scale", "minimum"}, 2: {"data", "scale", "minimum"}}
CODECS = {"plain", "int8", *(f"int{bits}/{group}" for bits in (4, 2) for group in (16, 32, 64, 128))}


@cache
def missing() -> str:
    """Why there are no such kernels here; empty where there are."""
    return "" if find_spec("triton") else "triton is not installed; pip install 'headwise[gpu]' on a machine with a GPU"


@dataclass(frozen=True)
class Triton:
    """Decoding over pages.

    interpreted: whether Triton's interpreter runs the kernels, which then read a CPU's tensors; wanted by tests, in a
    process that imported them with TRITON_INTERPRET=1.
    """

    interpreted: bool = False

    def available(self) -> tuple[bool, str]:
        """Whether there is Triton, and a GPU that it compiles for."""
        if why := missing():
            return False, why
        if not torch.cuda.is_available():
            return False, "no CUDA device"
        return True, f"Triton's kernels on {torch.cuda.get_device_name()}"

    def refuse_pages(self, request: PagesRequest) -> list[str]:
        """Reasons not to read these pages in place; empty to accept."""
        if why := missing():
            return [why]
        paged = request.paged
        reasons = self._refuse(request.q, request.where, request.scoring)
        return reasons + self._refuse_side(paged.keys) + self._refuse_side(paged.values)

    def attend_pages(self, request: PagesRequest) -> Attended:
        """Attention over pages, each lane with its own length, nothing copied."""
        whole = Part(request.paged, tuple(range(len(request.paged.lengths))))
        attended = Decode([whole], request.scoring)(request.q, request.where)
        assert attended is not None, f"{type(request.where).__name__} does not fit: ask `refuse_pages` first"
        return attended

    def refuse_prepare(self, request: PartsRequest) -> list[str]:
        """Reasons not to read these pages again and again in steps of decoding; empty to accept."""
        if len({(part.paged.values.width, part.paged.skip) for part in request.parts}) > 1:
            return ["parts whose values differ in width"]
        return [reason for part in request.each() for reason in self.refuse_pages(part)]

    def prepare_pages(self, request: PartsRequest) -> Decode:
        """The call that reads these pages for queries such as the request's, while they lie where they do."""
        return Decode(request.parts, request.scoring)

    @property
    def _device(self) -> str:
        return "cpu" if self.interpreted else "cuda"

    def _refuse(self, q: Tensor, where: Where, scoring: Scoring) -> list[str]:
        reasons = []
        if q.device.type != self._device:
            reasons.append(f"Triton's kernels run on {self._device}, not on {q.device.type}")
        if not fits(q, where):
            reasons.append(
                f"{q.shape[2]} tokens over {type(where).__name__}: it decodes up to {MOST_TOKENS} tokens, by one rule "
                "or over chosen tokens"
            )
        if q.dtype not in TYPES:
            reasons.append(f"no Triton kernel for {q.dtype}")
        if q.stride(3) != 1:
            reasons.append("the channels of q do not lie side by side; call .contiguous()")
        if scoring.edit is not None:
            reasons.append(EDITED)
        if torch.is_grad_enabled() and q.requires_grad:
            reasons.append("gradients: Triton's kernels have none")
        return reasons

    def _refuse_side(self, side: Side) -> list[str]:
        data = side.planes.get("data")
        if side.codec not in CODECS or data is None or set(side.planes) != PLANES[bits_of(side)]:
            return [f"no Triton kernel reads codec '{side.codec}' in place"]
        if side.codec == "plain" and data.dtype not in TYPES:
            return [f"no Triton kernel reads pages of {data.dtype}"]
        if data.device.type != self._device or not all(plane.is_contiguous() for plane in side.planes.values()):
            return [f"pages are read on {self._device}, and contiguous"]
        if side.frames is not None:
            return [f"codec '{side.codec}' writes turned vectors, which no Triton kernel turns back"]
        if side.codec == "int8" and side.planes["scale"].shape[2] != 1:
            return [f"{side.planes['scale'].shape[2]} scales of a vector in 8 bits, where the kernel reads one"]
        return [] if side.width <= WIDEST else [f"width {side.width} is above {WIDEST}"]
