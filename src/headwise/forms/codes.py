"""Vectors as whole numbers of few bits with one step each, for estimates of their products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwise.errors import HeadwiseError


def rounded(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Vectors `x [..., d]` as whole multiples, -most to most, of a `most`th of their largest channel.

    The numbers, int8 `[..., d]`, and the steps, float32 `[...]`; NaN for a vector that is not finite.
    """
    x = x.float()
    step = x.abs().amax(-1) / most
    return (x / step.clamp(min=1e-30)[..., None]).round_().to(torch.int8), step + (step - step)


@dataclass(frozen=True)
class Codes:
    """Keys `[h, n, d]` that are about middle + whole * step.

    whole: int8 `[h, n, d]`, -most to most. step: float32 `[h, n]`. middle: float32 `[h, d]`.
    """

    whole: Tensor
    step: Tensor
    middle: Tensor
    most: int

    @classmethod
    def of(cls, keys: Tensor, most: int) -> Codes:
        """What `keys [h, n, d]` differ from their mean by, rounded. most: 1 to 127; 7 takes 4 bits, 127 takes 8."""
        if not 1 <= most <= 127:
            raise HeadwiseError(f"codes of 8 bits or fewer reach 1 to 127, got most={most}; 7 takes 4 bits")
        middle = torch.stack([own.float().mean(0) for own in keys])
        parts = [rounded(own - about, most) for own, about in zip(keys, middle, strict=True)]  # each fits the caches
        return cls(torch.stack([whole for whole, _ in parts]), torch.stack([step for _, step in parts]), middle, most)
