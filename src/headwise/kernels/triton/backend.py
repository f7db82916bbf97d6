"""The attention that Triton's kernels compute: decoding over pages of a cache, read where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import log

import torch
from torch import Tensor

from headwise.forms import Attended, Full, Paged, Scoring, Side, Where
from headwise.kernels.request import EDITED, PagesRequest, Part, PartsRequest
from headwise.kernels.triton.decode import MOST_TOKENS, WIDEST, Decode, bits_of, fits

TYPES = (torch.float32, torch.bfloat16, torch.float16)
PLANES = {0: {"data"}, 8: {"data", "scale"}, 4: {"data", "scale", "minimum"}, 2: {"data", "scale", "minimum"}}
CODECS = {"plain", "int8", *(f"int{bits}/{group}" for bits in (4, 2) for group in (16, 32, 64, 128))}


@cache
def unusable(device: str) -> str:
    """Why the kernels cannot be used on a device, by running them once on two equal tokens; empty where they can."""
    if not find_spec("triton"):
        return "triton is not installed; pip install 'headwise[gpu]' on a machine with a GPU"
    try:
        pool = torch.ones(1, 16, 16, device=device)
        sides = [Side("plain", 16, {"data": pool}) for _ in range(2)]
        paged = Paged(sides[0], sides[1], (2,), (0,), None, 16, list)
        got = Decode([Part(paged, (0,))], Scoring(0.5))(pool[None, :, :1], Full())
        right = got is not None and bool((got.out == 1).all()) and abs(got.lse.item() - (8 + log(2))) < 1e-3
    except Exception as error:  # whatever a compiler, a driver or a device has to say
        told = (str(error).splitlines() or [type(error).__name__])[0]
        return f"Triton's kernels fail on {device}: {told}"
    return "" if right else f"Triton's kernels are wrong on {device}"


@dataclass(frozen=True)
class Triton:
    """Decoding over pages.

    interpreted: whether Triton's interpreter runs the kernels, which then read a CPU's tensors; wanted by tests, in a
    process that imported them with TRITON_INTERPRET=1.
    """

    interpreted: bool = False

    def available(self) -> tuple[bool, str]:
        """Reads two equal tokens on the GPU, where there is one."""
        if not torch.cuda.is_available():
            return False, "no CUDA device"
        why = unusable("cuda:0")
        return not why, why or f"Triton's kernels on {torch.cuda.get_device_name()}"

    def refuse_pages(self, request: PagesRequest) -> list[str]:
        """Reasons not to read these pages in place; empty to accept."""
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
            return [f"Triton's kernels run on {self._device}, not on {q.device.type}"]
        if why := unusable(str(q.device)):
            return [why]
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
