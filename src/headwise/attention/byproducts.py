"""What attention scores tell, computed by blocks of queries: memory O(block * n), never n x n, no `output_attentions`.

The native kernel computes what it can; the rest, and gradients, plain torch.

Same convention as `attend`: the t queries of `q [h, g, t, d]` are the last t of the n keys `k [h, n, d]`. All results
are float32 (float64 for float64 inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.codes import Codes, rounded
from headwise.forms.where import Blocks, Causal, Union, Where
from headwise.kernels.native import best
from headwise.kernels.native.byproducts import Scores
from headwise.kernels.native.estimates import Estimates
from headwise.kernels.native.held import Softmax
from headwise.kernels.native.weights import Weights
from headwise.kernels.reference import probabilities, score_blocks, scores, wide
from headwise.shapes import want


def _check(q: Tensor, k: Tensor, where: Where) -> tuple[int, int]:
    sizes = want(q, "h g t d")
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
    *,
    scale: float,
    last: int | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """Attention probability that each key got: `[h, n]`, summed over the group and the last `last` queries (None: all).

    lse: `[h, g, t]` of `Attended`, where these queries have read these keys: spares the kernel for prompts the first of
    its two passes; nothing else needs it.

    H2O's accumulated score (arXiv 2306.14048) with last=None, SnapKV's window vote (2404.14469) with a small `last`.
    """
    t, _ = _check(q, k, where)
    if lse is not None:
        want(lse, "h g t", h=q.shape[0], g=q.shape[1], t=t)
    first = _first_of(last, t)
    if not isinstance(where, Blocks | Union):  # these count their queries from the first on
        q, lse, first = q[:, :, first:], None if lse is None else lse[:, :, first:], 0
    few, prompt = Weights(q, k, where, Softmax(scale, softcap)), Scores(q, k, where, Softmax(scale, softcap))
    if not first and not few.refuse():
        return few.column_mass()
    if not first and not prompt.refuse():
        return prompt.column_mass(lse)
    q, k = wide(q), wide(k)
    mass = q.new_zeros(k.shape[:2])
    for _, s, visible in score_blocks(q, k, where, scale, softcap, first=first):
        mass[:, : s.shape[3]] += probabilities(s, visible)[0].sum((1, 2))
    return mass


def window_probabilities(q: Tensor, k: Tensor, *, scale: float, softcap: float | None = None) -> Tensor:
    """Causal attention probabilities of the last queries: `[h, g, t, n]`. For small t: memory is t * n."""
    t, n = _check(q, k, Causal())
    s = scores(wide(q), wide(k), scale, softcap)
    return probabilities(s, Causal().dense(t, n, q.device))[0]


def group_mass(q: Tensor, k: Tensor, *, scale: float, softcap: float | None = None) -> Tensor:
    """Causal attention probability that each key got of each query position, summed over the group: `[h, t, n]`.

    For small t: memory is t * n, without the native kernel g times as much.
    """
    native = Weights(q, k, Causal(), Softmax(scale, softcap))
    if not native.refuse():
        return native.by_query()
    return window_probabilities(q, k, scale=scale, softcap=softcap).sum(1)


def row_entropy(q: Tensor, k: Tensor, where: Where, *, scale: float, softcap: float | None = None) -> Tensor:
    """Entropy of each query's attention, in nats: `[h, g, t]`. 0 for a query that sees one key or none."""
    _check(q, k, where)
    native = Scores(q, k, where, Softmax(scale, softcap))
    if not native.refuse():
        return native.rows()[1]
    q, k = wide(q), wide(k)
    entropy = q.new_zeros(q.shape[:3])
    for rows, s, visible in score_blocks(q, k, where, scale, softcap):
        p, _ = probabilities(s, visible)
        entropy[:, :, rows] = torch.special.entr(p).sum(-1)
    return entropy


def row_lse(q: Tensor, k: Tensor, where: Where, *, scale: float, softcap: float | None = None) -> Tensor:
    """Log-sum-exp of each query's scores over the keys it sees: `[h, g, t]`, natural log, -inf where it sees none."""
    _check(q, k, where)
    native = Scores(q, k, where, Softmax(scale, softcap))
    if not native.refuse():
        return native.rows()[0]
    blocks = score_blocks(wide(q), wide(k), where, scale, softcap)
    return torch.cat([probabilities(s, visible)[1] for _, s, visible in blocks], 2)


def block_maxima(
    q: Tensor, k: Tensor, *, scale: float, block: int, softcap: float | None = None, below: Tensor | None = None
) -> Tensor:
    """Highest causal score of each query block on each key block: `[h, g, query_blocks, key_blocks]`, -inf where none.

    Query blocks count over the t queries, key blocks over the n keys, as in `Blocks`. below: `[h, g, t]`, finite, taken
    off the scores of each query; with a row's log-sum-exp these are logarithms of attention probabilities.
    """
    if block < 1:
        raise HeadwiseError(f"block={block}: a block holds at least 1 token")
    t, n = _check(q, k, Causal())
    if below is not None:
        want(below, "h g t", h=q.shape[0], g=q.shape[1], t=t)
    if below is not None and softcap is None:  # one channel more: q . k * scale - below is a product too
        ones = torch.ones_like(wide(k)[..., :1])
        q, k, below = torch.cat((wide(q) * scale, -below[..., None]), -1), torch.cat((wide(k), ones), -1), None
        q, k = (torch.nn.functional.pad(x, (0, -x.shape[-1] % 16)) for x in (q, k))
        scale = 1.0
    native = Scores(q, k, Causal(), Softmax(scale, softcap))
    if block % 16 == 0 and below is None and not native.refuse():
        return native.block_maxima(block)
    q, k = wide(q), wide(k)
    maxima = q.new_full((*q.shape[:2], -(-t // block), -(-n // block)), float("-inf"))
    for rows, s, visible in score_blocks(q, k, Causal(), scale, softcap, align=block):
        _raise(maxima, rows.start, s if below is None else s - below[:, :, rows, None], visible, block)
    return maxima


def _raise(maxima: Tensor, first: int, s: Tensor, visible: Tensor, block: int) -> None:
    """Write the maxima of visible scores `s [h, g, t, n]` of the queries from `first` on to where they belong."""
    low = float("-inf")
    count, reach = s.shape[2:]
    wide_blocks, tall_blocks = -(-reach // block), -(-count // block)
    padding = (0, wide_blocks * block - reach, 0, tall_blocks * block - count)
    s = torch.nn.functional.pad(s.masked_fill(~visible[:, None], low), padding, value=low)
    s = s.unflatten(3, (wide_blocks, block)).unflatten(2, (tall_blocks, block))
    first //= block
    maxima[:, :, first : first + tall_blocks, :wide_blocks] = s.amax((3, 5))


def estimated_maxima(
    q: Tensor, k: Codes, *, scale: float, block: int, below: Tensor, softcap: float | None = None
) -> Tensor:
    """Highest estimated causal score of a group on each key block, by query block: `[h, query_blocks, key_blocks]`.

    Queries `[h, g, t, d]` are rounded as the keys were, and what all keys have in common is multiplied exactly. below:
    `[h, g, t]`, taken off the scores of each query. -inf where no query sees a key, NaN where a score is not finite.
    """
    if block < 1:
        raise HeadwiseError(f"block={block}: a block holds at least 1 token")
    t, n = _check(q, k.whole, Causal())
    want(below, "h g t", h=q.shape[0], g=q.shape[1], t=t)
    native = Estimates(q, k, Softmax(scale, softcap))
    if not native.refuse():
        return native.block_maxima(block, below)
    whole, step = rounded(q, k.most)
    offset = torch.einsum("hgtd,hd->hgt", q.float(), k.middle) * scale
    maxima = step.new_full((*q.shape[:2], -(-t // block), -(-n // block)), float("-inf"))
    for rows, s, visible in score_blocks(whole.float(), k.whole.float(), Causal(), 1.0, None, align=block):
        s = s * k.step[:, None, None, : s.shape[3]] * (step[:, :, rows, None] * scale) + offset[:, :, rows, None]
        s = s if softcap is None else softcap * torch.tanh(s / softcap)
        _raise(maxima, rows.start, s - below[:, :, rows, None], visible, block)
    return maxima.amax(1)


def kept_mass(
    q: Tensor,
    k: Tensor,
    kept: Tensor,
    where: Where,
    *,
    scale: float,
    last: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Share of each head's attention that falls on the keys of a bool mask `kept [h, n]`: `[h]`, from 0 to 1.

    1 - this is the lost mass of evicting the others. Taken over the group and the last `last` queries (None: all).
    """
    want(kept, "h n", h=k.shape[0], n=k.shape[1])
    if kept.dtype != torch.bool:
        raise ShapeError(f"kept must be a bool mask [h, n], got {kept.dtype}")
    mass = column_mass(q, k, where, scale=scale, last=last, softcap=softcap)
    total = mass.sum(1)
    return mass.masked_fill(~kept, 0.0).sum(1) / total.masked_fill(total == 0, 1.0)


def best_scores(q: Tensor, vectors: Tensor) -> Tensor:
    """Largest q . x over the group and the queries of `q [h, g, t, d]`, of each x of `vectors [h, n, d]`: `[h, n]`.

    Before scaling.
    """
    sizes = want(q, "h g t d")
    want(vectors, "h n d", h=sizes["h"], d=sizes["d"])
    if not best.refuse(q, vectors):
        return best.best_scores(q, vectors)
    return (wide(q).flatten(1, 2) @ wide(vectors).mT).amax(1)


def page_scores(q: Tensor, bounds: Tensor) -> Tensor:
    """Highest q . k that a key of each page can have: `[h, pages]`. bounds: least and greatest key, `[h, pages, 2, d]`.

    The largest over the group and the queries of `q [h, g, t, d]`, before scaling (Quest, arXiv 2406.10774).
    """
    return best_scores(torch.cat((q.clamp(max=0), q.clamp(min=0)), dim=-1), bounds.flatten(2))
