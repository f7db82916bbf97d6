"""Which of several centres queries and keys lie nearest to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from headwise.layers.norms import wide


def centres(heads: int, books: int, count: int, dim: int) -> Tensor:
    """Random unit vectors, [heads, books, count, dim]."""
    return F.normalize(torch.randn(heads, books, count, dim), dim=-1)


def nearest(x: Tensor, known: Tensor) -> Tensor:
    """`x [batch, heads, tokens, dim]` and `known [heads, books, count, dim / books]` -> the centre of each book that
    the part of `x` has the smallest angle to, [batch, heads, tokens, books]."""
    pieces = wide(x).unflatten(-1, (known.shape[1], -1))
    return torch.einsum("bhnmd,hmcd->bhnmc", pieces, wide(known)).argmax(-1)
