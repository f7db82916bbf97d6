"""Packed integers whose scale and minimum belong to a channel over a group of tokens, not to a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.cache.codecs import CODECS, Family
from headwise.cache.codecs.packed import GROUPS
from headwise.errors import HeadwiseError
from headwise.kernels.reference.integers import LARGEST, SMALLEST, pack, unpack


@dataclass(frozen=True)
class Channels:
    """x = minimum + scale * code, two float16 numbers per channel and group of up to `tokens` tokens (KIVI).

    Planes: `data` uint8 [n, width * bits / 8], packed as in `Packed`. The numbers [groups, 2, width] (scale, minimum)
    lie beside the pages, in a `GroupedStore`.
    """

    bits: int
    tokens: int

    def planes(self, width: int, dtype: torch.dtype) -> dict[str, tuple[int, torch.dtype]]:
        if width * self.bits % 8:
            raise HeadwiseError(f"{self.bits}-bit codes of {width} channels do not fill whole bytes; use int8")
        return {"data": (width * self.bits // 8, torch.uint8)}

    def shared_bytes(self, width: int, dtype: torch.dtype, count: int) -> int:
        """Bytes of the numbers of the groups of `count` tokens."""
        return -(-count // self.tokens) * 2 * width * torch.float16.itemsize

    def measure(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers [2, width] of one group of tokens `x [m, width]`."""
        wide = x.float().clamp(-LARGEST, LARGEST)
        minimum = wide.amin(0).to(torch.float16)
        step = (wide.amax(0) - minimum.float()) / (2**self.bits - 1)
        return torch.stack((step.clamp(SMALLEST, LARGEST).to(torch.float16), minimum))

    def encode(self, x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Bytes [n, width * bits / 8] of `x [n, width]` by each token's numbers [n, 2, width]."""
        scale, minimum = numbers.float().unbind(1)
        codes = ((x.float().clamp(-LARGEST, LARGEST) - minimum) / scale).round().clamp(0, 2**self.bits - 1)
        return pack(codes.to(torch.uint8), self.bits)

    def decode(self, data: torch.Tensor, numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`[..., n, width]` from bytes [..., n, width * bits / 8] and numbers [..., n, 2, width]."""
        scale, minimum = numbers.float().unbind(-2)
        return (unpack(data, self.bits).float() * scale + minimum).to(dtype)


CODECS.add(
    "channels",
    Family(
        rf"channel(4|2)/({'|'.join(map(str, GROUPS))})",
        lambda name: Channels(int(name[1]), int(name[2])),
        tuple(f"channel{bits}/{tokens}" for bits in (4, 2) for tokens in GROUPS),
    ),
)
