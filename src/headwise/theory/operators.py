"""Methods on drawn queries, keys and values, without a model: what their papers state of the operator alone."""

from __future__ import annotations

import torch

from headwise.attention.attend import attend
from headwise.attention.view import Memory, View
from headwise.forms import Attended, Scoring, Where


def drawn(chance: torch.Generator, heads: int, tokens: int, width: int, queries: int = 0) -> tuple[torch.Tensor, ...]:
    """Gaussian queries [heads, 1, queries, width], as many as tokens where 0, and keys and values [heads, tokens,
    width], float32."""
    shapes = ((heads, 1, queries or tokens, width), (heads, tokens, width), (heads, tokens, width))
    return tuple(torch.randn(shape, generator=chance) for shape in shapes)


def view_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seed: int = 0) -> View:
    """What a method sees of the last queries q [h, g, t, d] over all keys k and values v [h, n, d]: one layer, nothing
    noted before, no marks."""
    heads, count, t = len(k), k.shape[1], q.shape[2]
    granted = {
        "keys": k,
        "values": v,
        "queries": q,
        "query_positions": torch.arange(count - t, count),
        "memory": Memory({}, 0, tuple(range(heads))),
        "rope": None,
        "marks": (),
    }
    positions = torch.arange(count).expand(heads, -1)
    return View(0, tuple(range(heads)), "prefill" if t > 1 else "decode", count, scoring(q), seed, positions, granted)


def scoring(q: torch.Tensor) -> Scoring:
    """Scores over the root of the width."""
    return Scoring(q.shape[-1] ** -0.5)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, where: Where) -> Attended:
    """Attention where the method has it."""
    return attend(q, k, v, where, scoring(q))


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    """The largest difference of any number."""
    return float((found - true).abs().max())
