"""What conversions to latents share: the heads' keys and values as one vector, and the fewer channels that hold most."""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.errors import RecipeError
from headwise.seams.transformers.weights import Decoder


def heads_of(weight: Tensor, heads: int) -> Tensor:
    """`[heads * dim, width]` -> [heads, dim, width], in float64."""
    return weight.double().unflatten(0, (heads, -1))


def principal(moment: Tensor, rank: int) -> Tensor:
    """The `rank` directions [channels, rank] that hold most of a second moment [channels, channels]."""
    return torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :rank]


def length_of(down: Tensor, moment: Tensor) -> float:
    """The root of E|W x|^2, for `down` W [channels, width] and E[x x^T] [width, width]."""
    return float(torch.einsum("cw,wv,cv->", down, moment, down).clamp_min(0).sqrt())


def check_rank(name: str, rank: int, most: int, of: str) -> None:
    """Refuse a latent with more channels than what it holds."""
    if rank > most:
        raise RecipeError(f"{name}: a latent of {rank} channels is wider than {of} ({most}); give a rank of {most} or "
                          "less, or 0 for all of them")  # fmt: skip


def check_rope(name: str, rope: int, source: Decoder, most: int) -> None:
    """Refuse channels that cannot be turned in pairs, or that there are not."""
    if rope % 2 or rope > most:
        raise RecipeError(f"{name}: rope={rope} is no even number of channels up to {most}; heads have "
                          f"{source.head_dim}")  # fmt: skip
