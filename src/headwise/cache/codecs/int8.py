"""8-bit integers with one scale per token and head: x = scale * integer, symmetric around 0."""

from __future__ import annotations

import torch

from headwise.cache.codecs import CODECS, Family
from headwise.kernels.native import codecs as native

# The smallest normal float16: below it the scale itself would lose precision.
SMALLEST = 6.2e-5


class Int8:
    """Rounds each vector to 255 levels between minus and plus its largest magnitude; the scale is a float16."""

    def planes(self, width: int, dtype: torch.dtype) -> dict[str, tuple[int, torch.dtype]]:
        return {"data": (width, torch.int8), "scale": (1, torch.float16)}

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if native.takes(x, x.shape[-1], x.dtype):
            return native.encode(x, 8, x.shape[-1], minimum=False)
        return self.plain_encode(x)

    def plain_encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same in torch."""
        wide = x.float()
        scale = (wide.abs().amax(-1, keepdim=True) / 127).clamp(SMALLEST, 65504).to(torch.float16)
        return {"data": (wide / scale.float()).round().clamp(-127, 127).to(torch.int8), "scale": scale}

    def decode(self, planes: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return planes["data"].float().mul_(planes["scale"].float()).to(dtype)


CODECS.add("int8", Family("int8", lambda name: Int8(), ("int8",)))
