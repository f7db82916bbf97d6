"""Vectors without the channels that matter least, chosen once for a lane by its first vectors and what meets them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.cache.codecs import CODECS, Family
from headwise.cache.codecs.lowrank import LowRank
from headwise.errors import HeadwiseError


@dataclass(frozen=True)
class Pruned(LowRank):
    """A basis of unit vectors: the coefficients are the channels that are left, and the others come back as 0.

    A channel adds q_c k_c to a score; the largest stay of its energy in the vectors times that of what meets them.
    """

    def fit(self, x: torch.Tensor, met: torch.Tensor | None = None) -> torch.Tensor:
        """The unit vectors [width, r] of the channels that stay of vectors `x [n, width]`; met: the energy [width] of
        what meets their channels, None where all are met alike."""
        energy = x.double().square().mean(0)
        if not energy.isfinite().all():
            raise HeadwiseError(
                "keys to be written without some channels are not finite: the model overflows in this element type; "
                "load it in bfloat16 or float32"
            )
        worth = energy if met is None else energy * met.double()
        best = worth.argsort(descending=True, stable=True)[: self.rank(x.shape[1])]
        return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, best.sort().values]


CODECS.add(
    "pruned",
    Family(
        r"pruned([\d.e-]+)/(.+)",  # the share of the channels that stay, and the codec of these
        lambda name: Pruned(float(name[1]), name[2], False),
        ("pruned0.5/plain",),
    ),
)
