"""Vectors as whole numbers with scales, in plain torch: symmetric 8-bit codes, and packed ones with a minimum."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 6.2e-5  # the smallest normal float16: below it the scale itself would lose precision
LARGEST = 65504.0  # of float16


def encode(x: Tensor, bits: int, group: int, minimum: bool) -> dict[str, Tensor]:
    """Planes of `x [..., n, width]`: `data [..., n, width * bits / 8]`, `scale` and `minimum [..., n, groups]`.

    With a minimum x is about minimum + scale * code, codes from 0 to 2^bits - 1. Without, x is about scale * code, the
    codes of 8 bits symmetric around 0 and one group as wide as x.
    """
    return _packed(x, bits, group) if minimum else _symmetric(x)


def _symmetric(x: Tensor) -> dict[str, Tensor]:
    wide = x.float()
    scale = (wide.abs().amax(-1, keepdim=True) / 127).clamp(SMALLEST, LARGEST).to(torch.float16)
    return {"data": (wide / scale.float()).round().clamp(-127, 127).to(torch.int8), "scale": scale}


def _packed(x: Tensor, bits: int, group: int) -> dict[str, Tensor]:
    most = 2**bits - 1
    wide = x.float().clamp(-LARGEST, LARGEST)
    parts = wide.split(group, dim=-1)
    # The minimum is rounded first, so that the scale fits the minimum that is stored.
    minimum = torch.stack([part.amin(-1) for part in parts], dim=-1).to(torch.float16)
    largest = torch.stack([part.amax(-1) for part in parts], dim=-1)
    scale = ((largest - minimum.float()) / most).clamp(SMALLEST, LARGEST).to(torch.float16)
    low, step = (one.float().repeat_interleave(group, dim=-1)[..., : x.shape[-1]] for one in (minimum, scale))
    codes = ((wide - low) / step).round().clamp(0, most).to(torch.uint8)
    return {"data": pack(codes, bits), "scale": scale, "minimum": minimum}


def decode(planes: dict[str, Tensor], width: int, group: int, dtype: torch.dtype) -> Tensor:
    """`[..., n, width]` in `dtype` from the planes that `encode` gave."""
    if "minimum" not in planes:
        return planes["data"].float().mul_(planes["scale"].float()).to(dtype)
    codes = unpack(planes["data"], 8 * planes["data"].shape[-1] // width).float()
    scales, minima = (planes[name].float().split(1, dim=-1) for name in ("scale", "minimum"))
    for own, scale, minimum in zip(codes.split(group, dim=-1), scales, minima, strict=True):
        own.mul_(scale).add_(minimum)  # in place: this is the most that a layer holds while it reads
    return codes.to(dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Bytes `[..., width * bits / 8]` of uint8 `codes [..., width]`, the first code in the lowest bits."""
    parts = codes.unflatten(-1, (-1, 8 // bits)).unbind(-1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], start=1):
        packed |= part << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Codes `[..., width]` from what `pack` gave."""
    places = range(0, 8, bits)
    return torch.stack([(packed >> place) & (2**bits - 1) for place in places], dim=-1).flatten(-2)
