"""Vectors as they are."""

from __future__ import annotations

import torch

from headwise.cache.codecs import CODECS, Family


class Plain:
    """One plane, the vectors themselves; decoding copies nothing."""

    def planes(self, width: int, dtype: torch.dtype) -> dict[str, tuple[int, torch.dtype]]:
        return {"data": (width, dtype)}

    def encode(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"data": x}

    def decode(self, planes: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return planes["data"].to(dtype)


CODECS.add("plain", Family("plain", lambda name: Plain(), ("plain",)))
