"""4-bit and 2-bit integers, packed into bytes, with a scale and a minimum per token and group of channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.cache.codecs import CODECS, Family
from headwise.cache.codecs.int8 import SMALLEST
from headwise.errors import HeadwiseError
from headwise.kernels.native import codecs as native

GROUPS = (16, 32, 64, 128)  # channels that share a scale
LARGEST = 65504.0  # of float16


@dataclass(frozen=True)
class Packed:
    """x = minimum + scale * code, code from 0 to 2^bits - 1; each group of `group` channels has its own two numbers.

    Planes: `data` uint8 [n, width * bits / 8], where byte j holds channels c*j, c*j + 1, ... (c = 8 / bits), the first
    in the lowest bits; `scale` and `minimum` float16 [n, ceil(width / group)]. The last group may be short.

    A minimum beside the scale rather than a symmetric scale for half the group, which takes as many bytes: over keys
    and values of a trained model its error is smaller, by 2 to 7 % at 4 bits and 13 to 33 % at 2 bits.
    """

    bits: int
    group: int

    def planes(self, width: int, dtype: torch.dtype) -> dict[str, tuple[int, torch.dtype]]:
        if width * self.bits % 8:
            raise HeadwiseError(
                f"{self.bits}-bit codes of {width} channels do not fill whole bytes; use int8, or a model whose heads "
                f"are a multiple of {8 // self.bits} wide"
            )
        groups = -(-width // self.group)
        bytes_ = width * self.bits // 8
        return {"data": (bytes_, torch.uint8), "scale": (groups, torch.float16), "minimum": (groups, torch.float16)}

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if native.takes(x, x.shape[-1], x.dtype) and self.group % 16 == 0:
            return native.encode(x, self.bits, self.group, minimum=True)
        return self.plain_encode(x)

    def decode(self, planes: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        width = planes["data"].shape[-1] * 8 // self.bits
        if native.takes(planes["data"], width, dtype) and self.group % 16 == 0:
            return native.decode(planes, width, self.group, dtype)
        return self.plain_decode(planes, dtype)

    def plain_encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same in torch."""
        wide = x.float().clamp(-LARGEST, LARGEST)
        parts = wide.split(self.group, dim=-1)
        # The minimum is rounded first, so that the scale fits the minimum that is stored.
        minimum = torch.stack([part.amin(-1) for part in parts], dim=-1).to(torch.float16)
        largest = torch.stack([part.amax(-1) for part in parts], dim=-1)
        scale = ((largest - minimum.float()) / self.levels).clamp(SMALLEST, LARGEST).to(torch.float16)
        codes = (wide - self._spread(minimum, x.shape[-1])) / self._spread(scale, x.shape[-1])
        codes = codes.round().clamp(0, self.levels).to(torch.uint8)
        return {"data": pack(codes, self.bits), "scale": scale, "minimum": minimum}

    def plain_decode(self, planes: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The same in torch."""
        codes = unpack(planes["data"], self.bits).float()
        scales, minima = (planes[name].float().split(1, dim=-1) for name in ("scale", "minimum"))
        for own, scale, minimum in zip(codes.split(self.group, dim=-1), scales, minima, strict=True):
            own.mul_(scale).add_(minimum)  # in place: this is the most that a layer holds while it reads
        return codes.to(dtype)

    @property
    def levels(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def _spread(self, numbers: torch.Tensor, width: int) -> torch.Tensor:
        """One number per channel [..., width] from one per group."""
        return numbers.float().repeat_interleave(self.group, dim=-1)[..., :width]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes [..., width * bits / 8] of uint8 `codes [..., width]`, the first code in the lowest bits."""
    parts = codes.unflatten(-1, (-1, 8 // bits)).unbind(-1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], start=1):
        packed |= part << (bits * place)
    return packed


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [..., width] from what `pack` gave."""
    places = range(0, 8, bits)
    return torch.stack([(packed >> place) & (2**bits - 1) for place in places], dim=-1).flatten(-2)


CODECS.add(
    "packed",
    Family(
        rf"int(4|2)/({'|'.join(map(str, GROUPS))})",
        lambda name: Packed(int(name[1]), int(name[2])),
        tuple(f"int{bits}/{group}" for bits in (4, 2) for group in GROUPS),
    ),
)
