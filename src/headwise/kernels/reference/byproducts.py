"""What attention scores tell, in plain torch, by blocks of queries: memory O(block * n), never n x n."""

from __future__ import annotations

import torch
from torch import Tensor

from headwise.forms import Causal, Codes, Scoring, Where
from headwise.forms.codes import rounded
from headwise.kernels.reference.scores import probabilities, score_blocks, scores, wide


def column_mass(q: Tensor, k: Tensor, where: Where, scoring: Scoring, first: int, lse: Tensor | None) -> Tensor:
    """Probability that each key got from the queries from `first` on, summed over them and the group: `[h, n]`."""
    q, k = wide(q), wide(k)
    mass = q.new_zeros(k.shape[:2])
    for _, s, visible in score_blocks(q, k, where, scoring, first=first):
        mass[:, : s.shape[3]] += probabilities(s, visible, scoring.sinks)[0].sum((1, 2))
    return mass


def column_peaks(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Tensor:
    """Highest probability that each key got of a query of each head, 0 where none sees it: `[h, g, n]`."""
    q, k = wide(q), wide(k)
    peaks = q.new_zeros(*q.shape[:2], k.shape[1])
    for _, s, visible in score_blocks(q, k, where, scoring):
        seen = peaks[:, :, : s.shape[3]]
        seen.copy_(torch.maximum(seen, probabilities(s, visible, scoring.sinks)[0].amax(2)))
    return peaks


def window_probabilities(q: Tensor, k: Tensor, scoring: Scoring) -> Tensor:
    """Causal attention probabilities: `[h, g, t, n]`."""
    s = scores(wide(q), wide(k), scoring)
    return probabilities(s, Causal().dense(q.shape[2], k.shape[1], q.device), scoring.sinks)[0]


def group_mass(q: Tensor, k: Tensor, scoring: Scoring) -> Tensor:
    """Causal probability that each key got of each query position, summed over the group: `[h, t, n]`."""
    return window_probabilities(q, k, scoring).sum(1)


def row_entropy(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Tensor:
    """Entropy of each query's attention, in nats: `[h, g, t]`."""
    q, k = wide(q), wide(k)
    entropy = q.new_zeros(q.shape[:3])
    for rows, s, visible in score_blocks(q, k, where, scoring):
        p, lse = probabilities(s, visible)
        own = torch.special.entr(p).sum(-1)
        entropy[:, :, rows] = own if scoring.sinks is None else scoring.sinks.entropy(own, lse)
    return entropy


def row_lse(q: Tensor, k: Tensor, where: Where, scoring: Scoring) -> Tensor:
    """Log-sum-exp of each query's scores: `[h, g, t]`."""
    blocks = score_blocks(wide(q), wide(k), where, scoring)
    return torch.cat([probabilities(s, visible, scoring.sinks)[1] for _, s, visible in blocks], 2)


def block_maxima(q: Tensor, k: Tensor, scoring: Scoring, block: int, below: Tensor | None) -> Tensor:
    """Highest causal score, less `below [h, g, t]`, of each pair of blocks: `[h, g, query_blocks, key_blocks]`."""
    q, k = wide(q), wide(k)
    t, n = q.shape[2], k.shape[1]
    maxima = q.new_full((*q.shape[:2], -(-t // block), -(-n // block)), float("-inf"))
    for rows, s, visible in score_blocks(q, k, Causal(), scoring, align=block):
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


def estimated_maxima(q: Tensor, k: Codes, scoring: Scoring, block: int, below: Tensor) -> Tensor:
    """The same of scores estimated from codes, of the group together: `[h, query_blocks, key_blocks]`."""
    t, n = q.shape[2], k.whole.shape[1]
    whole, step = rounded(q, k.most)
    offset = torch.einsum("hgtd,hd->hgt", q.float(), k.middle) * scoring.scale
    maxima = step.new_full((*q.shape[:2], -(-t // block), -(-n // block)), float("-inf"))
    for rows, s, visible in score_blocks(whole.float(), k.whole.float(), Causal(), Scoring(1.0), align=block):
        s = s * k.step[:, None, None, : s.shape[3]] * (step[:, :, rows, None] * scoring.scale)
        s = scoring.capped(s + offset[:, :, rows, None])
        _raise(maxima, rows.start, s - below[:, :, rows, None], visible, block)
    return maxima.amax(1)


def best_scores(q: Tensor, vectors: Tensor) -> Tensor:
    """Largest q . x over the group and the queries, of each vector x: `[h, n]`."""
    queries = wide(q).flatten(1, 2)
    return (queries @ vectors.to(queries.dtype).mT).amax(1)
