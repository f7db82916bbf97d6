"""8-bit integers with one scale per token and head: x = scale * integer, symmetric around 0."""

from __future__ import annotations

import torch

from headwise.cache.codecs import CODECS, Family
from headwise.kernels import ops


class Int8:
    """Rounds each vector to 255 levels between minus and plus its largest magnitude; the scale is a float16."""

    def planes(self, width: int, dtype: torch.dtype) -> dict[str, tuple[int, torch.dtype]]:
        return {"data": (width, torch.int8), "scale": (1, torch.float16)}

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return ops.encode(x, 8, x.shape[-1], False)

    def decode(self, planes: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        width = planes["data"].shape[-1]
        return ops.decode(planes, width, width, dtype)


CODECS.add("int8", Family("int8", lambda name: Int8(), ("int8",)))
