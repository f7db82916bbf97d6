"""4-bit and 2-bit integers, packed into bytes, with a scale and a minimum per token and group of channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.cache.codecs import CODECS, Family
from headwise.errors import HeadwiseError
from headwise.kernels import ops

GROUPS = (16, 32, 64, 128)  # channels that share a scale


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
        return ops.encode(x, self.bits, self.group, True)

    def decode(self, planes: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return ops.decode(planes, planes["data"].shape[-1] * 8 // self.bits, self.group, dtype)


CODECS.add(
    "packed",
    Family(
        rf"int(4|2)/({'|'.join(map(str, GROUPS))})",
        lambda name: Packed(int(name[1]), int(name[2])),
        tuple(f"int{bits}/{group}" for bits in (4, 2) for group in GROUPS),
    ),
)
