"""What conversions to latents share: keys and values of all heads as fewer channels, which hold most."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headwise.errors import RecipeError
from headwise.seams.transformers.weights import Decoder, Latent, Layer


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


def most_rank(source: Decoder) -> int:
    """Channels of a latent that holds keys and values of all heads whole."""
    return min(2 * source.kv_heads * source.head_dim, source.width)


def usual(source: Decoder, rope: int) -> Tensor:
    """The angles of so many channels, as the model would have them of heads that wide: [rope / 2]."""
    return source.theta ** (-torch.arange(0, rope, 2, dtype=torch.float32) / rope)


def singular(source: Decoder, layer: Layer, moment: Tensor, rank: int, rope: int) -> Latent:
    """A layer whose keys and values are the `rank` largest singular vectors of the matrices that make them, and whose
    turned key is the mean over KV heads of their last `rope` channels (X-EcoMLA, section 3)."""
    groups, dim = source.kv_heads, source.head_dim
    k, v = (heads_of(one, groups).repeat_interleave(source.heads // groups, 0) for one in (layer.k, layer.v))
    left, sizes, right = torch.linalg.svd(torch.cat((k, v)).flatten(0, 1), full_matrices=False)
    down = sizes[:rank, None] * right[:rank]
    up_k, up_v = left[:, :rank].unflatten(0, (2, source.heads, dim))
    turned = heads_of(layer.k, groups).mean(0)[dim - rope :]
    parts = (heads_of(layer.q, source.heads), torch.cat((down, turned)), torch.cat((up_k[:, : dim - rope], up_v), 1))
    q, kv_a, kv_b = (one.float() for one in parts)
    return Latent(q, kv_a, kv_b, rope, length_of(down, moment))


def redrawn(one: Latent, drawn: torch.Generator) -> Latent:
    """The layer with random matrices as large as its own in the place of those that make keys and values."""
    a, b = (torch.randn(each.shape, generator=drawn) * each.std() for each in (one.kv_a, one.kv_b))
    return replace(one, kv_a=a, kv_b=b)
