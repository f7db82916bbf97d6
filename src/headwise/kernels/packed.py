"""Weights of a linear layer in whole numbers: 8 or 4 bits each, with a scale for every 32 of a row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headwise.errors import HeadwiseError

GROUP = 32  # weights that share a scale, as in GGUF's Q8_0 and Q4_1: `GROUP` of native/inputs.hpp
BITS = (8, 4)
ROWS = 1 << 14  # rows of a matrix that are packed at a time
SHRINKS = (0.96, 0.92, 0.88, 0.84, 0.8, 0.76)  # of a group's range that 4 bits are tried on
STEPS = (15, 14, 13, 12, 11, 10, 9)  # of the whole range: weights of an earlier grid may have used fewer codes


@dataclass(frozen=True, eq=False)
class Packed:
    """Weights [outer, inner] as codes: int8 [outer, inner], weight = code * scale; or uint8 [outer, inner / 2] with two
    of 4 bits each, byte i of a group holding its weights i and i + 16, weight = code * scale + low.

    scale, low: float16 [outer, inner / 32]; low is None for 8 bits. dtype: of the weights that were packed, and of what
    they are multiplied with.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor | None
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def shape(self) -> tuple[int, int]:
        """outer, inner."""
        return len(self.codes), self.scale.shape[1] * GROUP

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is stored."""
        return (self.codes, self.scale) if self.low is None else (self.codes, self.scale, self.low)

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return sum(one.nbytes for one in self.tensors)

    def rows(self, own: slice) -> Packed:
        """Some outputs alone, as views."""
        low = None if self.low is None else self.low[own]
        return replace(self, codes=self.codes[own], scale=self.scale[own], low=low)

    def dense(self) -> Tensor:
        """The weights [outer, inner] that the codes stand for, in `dtype`."""
        if self.low is None:
            grouped = self.codes.unflatten(1, (-1, GROUP)) * self.scale.float()[..., None]
        else:
            halves = self.codes.unflatten(1, (-1, GROUP // 2))
            codes = torch.cat((halves & 15, halves >> 4), dim=-1)
            grouped = torch.addcmul(self.low.float()[..., None], codes.float(), self.scale.float()[..., None])
        return grouped.flatten(1).to(self.dtype)


def refuse(weight: Tensor, bits: int) -> str:
    """Why weights cannot be packed in so many bits; empty if they can."""
    if bits not in BITS:
        return f"weights of {bits} bits; there are {' and '.join(map(str, BITS))}"
    if weight.dim() != 2 or weight.shape[1] % GROUP:
        return f"weights of shape {tuple(weight.shape)}, whose rows are not whole groups of {GROUP}"
    if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float32):
        return f"weights of {weight.dtype} on {weight.device.type}, not bfloat16 or float32 on the CPU"
    return ""


def pack(weight: Tensor, bits: int) -> Packed:
    """`weight [outer, inner]` in whole numbers of 8 or 4 bits, to the nearest.

    8 bits: the largest of a group is 127 steps from zero. 4 bits: the whole range of a group in 9 to 15 steps or part
    of it in 15, and the scale and low that fit these codes best; of all the one with the least squared error.
    HeadwiseError where `refuse` says so.
    """
    if why := refuse(weight, bits):
        raise HeadwiseError(f"cannot pack {why}")
    parts = [_pack(part.detach().float().unflatten(1, (-1, GROUP)), bits) for part in weight.split(ROWS)]
    codes, scale, *low = (torch.cat(planes) for planes in zip(*parts, strict=True))
    return Packed(codes, scale, low[0] if low else None, weight.dtype)


def _pack(groups: Tensor, bits: int) -> tuple[Tensor, ...]:
    """groups [outer, groups, 32] -> the planes of a `Packed`."""
    if bits == 8:
        scale = (groups.abs().amax(-1) / 127).half()
        codes = (groups / _divisor(scale)).round().clamp(-127, 127).to(torch.int8)
        return codes.flatten(1), scale
    scale, low, codes = _fitted(groups)
    halves = codes.to(torch.uint8).unflatten(-1, (2, GROUP // 2))
    return (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(1), scale, low


def _fitted(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """scale, low [outer, groups] in float16, and codes 0 to 15 [outer, groups, 32] in floats."""
    least, most = groups.amin(-1), groups.amax(-1)
    middle, reach = (least + most) / 2, (most - least) / 2
    best, found = torch.full_like(least, torch.inf), (least, least, groups)
    tried = [(2 * reach / steps, least) for steps in STEPS]
    tried += [(2 * reach * shrink / 15, middle - reach * shrink) for shrink in SHRINKS]
    for scale, low in ((wide.half(), start.half()) for wide, start in tried):
        codes = _codes(groups, scale, low)
        scale, low = _refit(groups, codes, scale, low)
        codes = _codes(groups, scale, low)
        error = (codes * scale.float()[..., None] + low.float()[..., None] - groups).square().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        found = (
            torch.where(better, scale, found[0]),
            torch.where(better, low, found[1]),
            torch.where(better[..., None], codes, found[2]),
        )
    return found[0].half(), found[1].half(), found[2]


def _codes(groups: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    return ((groups - low.float()[..., None]) / _divisor(scale)).round().clamp(0, 15)


def _refit(groups: Tensor, codes: Tensor, scale: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and low of least squares for these codes; those given where all codes are the same."""
    away, of = codes - codes.mean(-1, keepdim=True), groups - groups.mean(-1, keepdim=True)
    spread = away.square().sum(-1)
    slope = torch.where(spread > 0, (away * of).sum(-1) / spread.clamp_min(1e-9), scale.float())
    return slope.half(), torch.where(spread > 0, groups.mean(-1) - slope * codes.mean(-1), low.float()).half()


def _divisor(scale: Tensor) -> Tensor:
    """The scale to divide by, [..., 1]: 1 where it is 0, as all codes are 0 there."""
    wide = scale.float()[..., None]
    return torch.where(wide == 0, 1.0, wide)
