"""What attention scores tell, computed by blocks of queries: memory O(block * n), never n x n, no `output_attentions`.

Same convention as `attend`: the t queries of `q [h, g, t, d]` are the last t of the n keys `k [h, n, d]`. All results
are float32 (float64 for float64 inputs). Where sinks join the softmax (`Scoring.sinks`), probabilities are those of the
model: what all keys got together is less than 1 by what the sink of their query head got.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Blocks, Causal, Codes, Scoring, Union, Where
from headwise.kernels import ops
from headwise.kernels.reference import byproducts as plain
from headwise.shapes import want


def _check(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> tuple[int, int]:
    sizes = want(q, "h g t d")
    if scoring.edit is not None:
        raise HeadwiseError("by-products tell the model's own scores; give `scoring` without its edit")
    scoring.check(q)
    n = want(k, "h n d", h=sizes["h"], d=sizes["d"])["n"]
    if where.heads not in (None, sizes["h"]):
        raise ShapeError(f"{type(where).__name__} has lists for {where.heads} heads, q has {sizes['h']}")
    where.check(sizes["t"], n)
    return sizes["t"], n


def _first_of(last: int | None, t: int) -> int:
    if last is None:
        return 0
    if not 1 <= last <= t:
        raise HeadwiseError(f"last={last} of t={t} queries; give 1 to {t}, or None for all")
    return t - last


def column_mass(
    q: Tensor,
    k: Tensor,
    where: Where,
    scoring: Scoring,
    *,
    last: int | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """Attention probability that each key got: `[h, n]`, summed over the group and the last `last` queries (None: all).

    lse: `[h, g, t]` of `Attended`, where these queries have read these keys: spares the kernel for prompts the first of
    its two passes; nothing else needs it.

    H2O's accumulated score (arXiv 2306.14048) with last=None, SnapKV's window vote (2404.14469) with a small `last`.
    """
    t, _ = _check(q, k, where, scoring)
    if lse is not None:
        want(lse, "h g t", h=q.shape[0], g=q.shape[1], t=t)
    first = _first_of(last, t)
    if not isinstance(where, Blocks | Union):  # these count their queries from the first on
        q, lse, first = q[:, :, first:], None if lse is None else lse[:, :, first:], 0
    return ops.column_mass(q, k, where, scoring, first, lse)


def column_peaks(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Tensor:
    """Highest attention probability that each key got of any query, by query head: `[h, g, n]`; 0 where none sees it.

    KVzip's score (arXiv 2505.23416, section 3.2) is the maximum of these over the group, KVCompose's their mean.
    """
    _check(q, k, where, scoring)
    return ops.column_peaks(q, k, where, scoring)


def window_probabilities(q: Tensor, k: Tensor, scoring: Scoring) -> Tensor:
    """Causal attention probabilities of the last queries: `[h, g, t, n]`. For small t: memory is t * n."""
    _check(q, k, Causal(), scoring)
    return plain.window_probabilities(q, k, scoring)


def group_mass(q: Tensor, k: Tensor, scoring: Scoring) -> Tensor:
    """Causal attention probability that each key got of each query position, summed over the group: `[h, t, n]`.

    For small t: memory is t * n, without the native kernel g times as much.
    """
    _check(q, k, Causal(), scoring)
    return ops.group_mass(q, k, scoring)


def row_entropy(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Tensor:
    """Entropy of each query's attention, in nats: `[h, g, t]`. 0 for a query that sees one key or none. A sink is one
    more outcome."""
    _check(q, k, where, scoring)
    return ops.row_entropy(q, k, where, scoring)


def row_lse(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Tensor:
    """Log-sum-exp of each query's scores over the keys it sees: `[h, g, t]`, natural log, -inf where it sees none.
    A sink is one more score."""
    _check(q, k, where, scoring)
    return ops.row_lse(q, k, where, scoring)


def block_maxima(q: Tensor, k: Tensor, scoring: Scoring, *, block: int, below: Tensor | None = None) -> Tensor:
    """Highest causal score of each query block on each key block: `[h, g, query_blocks, key_blocks]`, -inf where none.

    Query blocks count over the t queries, key blocks over the n keys, as in `Blocks`. below: `[h, g, t]`, finite, taken
    off the scores of each query; with a row's log-sum-exp these are logarithms of attention probabilities.
    """
    if block < 1:
        raise HeadwiseError(f"block={block}: a block holds at least 1 token")
    t, _ = _check(q, k, Causal(), scoring)
    if below is not None:
        want(below, "h g t", h=q.shape[0], g=q.shape[1], t=t)
    return ops.block_maxima(q, k, scoring, block, below)


def estimated_maxima(q: Tensor, k: Codes, scoring: Scoring, *, block: int, below: Tensor) -> Tensor:
    """Highest estimated causal score of a group on each key block, by query block: `[h, query_blocks, key_blocks]`.

    Queries `[h, g, t, d]` are rounded as the keys were, and what all keys have in common is multiplied exactly. below:
    `[h, g, t]`, taken off the scores of each query. -inf where no query sees a key, NaN where a score is not finite.
    """
    if block < 1:
        raise HeadwiseError(f"block={block}: a block holds at least 1 token")
    t, _ = _check(q, k.whole, Causal(), scoring)
    want(below, "h g t", h=q.shape[0], g=q.shape[1], t=t)
    return ops.estimated_maxima(q, k, scoring, block, below)


def kept_mass(q: Tensor, k: Tensor, kept: Tensor, where: Where, scoring: Scoring, *, last: int | None = None) -> Tensor:
    """Share of each head's attention that falls on the keys of a bool mask `kept [h, n]`: `[h]`, from 0 to 1.

    1 - this is the lost mass of evicting the others; so what a sink gets counts as kept. Taken over the group and the
    last `last` queries (None: all).
    """
    want(kept, "h n", h=k.shape[0], n=k.shape[1])
    if kept.dtype != torch.bool:
        raise ShapeError(f"kept must be a bool mask [h, n], got {kept.dtype}")
    mass = column_mass(q, k, where, scoring, last=last)
    total, stays = mass.sum(1), mass.masked_fill(~kept, 0.0).sum(1)
    if scoring.sinks is not None:  # every row of probabilities sums to 1 with its sink, whatever it sees
        rows = float(q.shape[1] * (last or q.shape[2]))
        total, stays = torch.full_like(total, rows), stays + (rows - total)
    return stays / total.masked_fill(total == 0, 1.0)


def best_scores(q: Tensor, vectors: Tensor) -> Tensor:
    """Largest q . x over the group and the queries of `q [h, g, t, d]`, of each x of `vectors [h, n, d]`: `[h, n]`.

    Before scaling.
    """
    if q.dim() != 4 or vectors.dim() != 3 or q.shape[::3] != vectors.shape[::2]:
        sizes = want(q, "h g t d")
        want(vectors, "h n d", h=sizes["h"], d=sizes["d"])
    return ops.best_scores(q, vectors)


def page_scores(q: Tensor, bounds: Tensor) -> Tensor:
    """Highest q . k that a key of each page can have: `[h, pages]`. bounds: least and greatest key, `[h, pages, 2, d]`.

    The largest over the group and the queries of `q [h, g, t, d]`, before scaling (Quest, arXiv 2406.10774).
    """
    return best_scores(torch.cat((q.clamp(max=0), q.clamp(min=0)), dim=-1), bounds.flatten(2))
