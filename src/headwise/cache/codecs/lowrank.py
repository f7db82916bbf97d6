"""Vectors as a few coefficients over a basis that belongs to the lane, fitted to the first vectors that come."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.cache.codecs import CODECS, Family, codec
from headwise.errors import HeadwiseError


@dataclass(frozen=True)
class LowRank:
    """x = basis @ coefficients: the coefficients [n, r] are written by the codec `inner`, the basis is [width, r].

    share: r as a share of the width, to an even number. unrotated: keys are written as they were before the rotary
    embedding turned them, and turned again when they are read; r directions hold more of them so.
    The columns of the basis are the right singular vectors of the first vectors, each times the root of its singular
    value: so the coefficients of weak directions are small but not lost where `inner` rounds. Rounding error at 4 bits,
    of keys of a trained model at a quarter of the width: 0.046 of the norm, 0.087 with columns of length 1.
    """

    share: float
    inner: str
    unrotated: bool

    def rank(self, width: int) -> int:
        """Coefficients of a vector of `width` channels."""
        return max(2, 2 * round(self.share * width / 2))

    def planes(self, width: int, dtype: torch.dtype) -> dict[str, tuple[int, torch.dtype]]:
        """Those of `inner`, for the coefficients."""
        return codec(self.inner).planes(self.rank(width), dtype)

    def fitted(self, width: int, dtype: torch.dtype) -> tuple[list[int], torch.dtype]:
        """Sizes and element type of a lane's basis."""
        return [width, self.rank(width)], dtype

    def shared_bytes(self, width: int, dtype: torch.dtype, count: int) -> int:
        """Bytes of the basis of a lane of `count` tokens."""
        return width * self.rank(width) * dtype.itemsize if count else 0

    def fit(self, x: torch.Tensor) -> torch.Tensor:
        """The basis [width, r] of vectors `x [n, width]`, in their element type."""
        wide = x.double()
        if not wide.isfinite().all():
            raise HeadwiseError(
                "keys or values to be written at low rank are not finite: the model overflows in this element type; "
                "load it in bfloat16 or float32"
            )
        energy, directions = torch.linalg.eigh(wide.mT @ wide / len(x))
        energy, directions = (one.flip(-1)[..., : self.rank(x.shape[1])] for one in (energy, directions))
        strongest = directions.gather(0, directions.abs().argmax(0, keepdim=True))  # which fixes the sign
        lengths = energy.clamp_min(torch.finfo(torch.float16).tiny).pow(0.25)  # a singular value is its root
        return (directions * strongest.sign() * lengths).to(x.dtype)

    def encode(self, x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        """Coefficients [n, r] of `x [n, width]`."""
        wide = basis.double()
        return (x.double() @ (wide / wide.square().sum(0))).to(x.dtype)

    def decode(self, coefficients: torch.Tensor, basis: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`[h, n, width]` from coefficients [h, n, r] and bases [h, width, r]."""
        return (coefficients.float() @ basis.float().mT).to(dtype)


@dataclass(frozen=True)
class Spanned(LowRank):
    """The same of vectors that are a token's in all heads of several layers, side by side (`SpannedStore`)."""


def low_rank(name: str) -> LowRank | None:
    """The codec called `name` if it is one of low rank."""
    found = codec(name)
    return found if isinstance(found, LowRank) else None


CODECS.add(
    "lowrank",
    Family(
        r"(lowrank|unrotated|spanned)([\d.e-]+)/(.+)",  # the share of the width, and the codec of the coefficients
        lambda name: (Spanned if name[1] == "spanned" else LowRank)(float(name[2]), name[3], name[1] != "lowrank"),
        ("lowrank0.5/plain", "unrotated0.5/int4/32", "spanned0.5/int8"),
    ),
)
