"""How far evicting tokens can move an attention output, from the attention they would have had.

Of one query, p_i are the attention probabilities over all tokens and v_i the values, so that out = sum_i p_i v_i. K is
kept, E evicted, and lost = sum_E p_i. What is kept is renormalised, as softmax over K does by itself:

    kept_out = sum_K p_i v_i / (1 - lost),   gone = sum_E p_i v_i / lost   (a mean of the evicted values)
    out = (1 - lost) kept_out + lost gone
    out - kept_out = lost (gone - kept_out)                        (1)
    gone - out = (1 - lost) (gone - kept_out), and so
    out - kept_out = lost / (1 - lost) (gone - out)                (2)

`gone` is a convex combination of the evicted values, and a norm is convex, so for any x ||gone - x|| is at most
max_E ||v_i - x||:

    after   ||out - kept_out|| <= lost max_E ||v_i - kept_out||           by (1), with what is kept at hand
    before  ||out - kept_out|| <= lost / (1 - lost) max_E ||v_i - out||   by (2), with the dense output at hand
    norms   ||out - kept_out|| <= 2 lost max_i ||v_i||                    by (1), both sides being means of values

The first is met exactly where one token is evicted, the second too; the third is the loosest, and all that can be said
from the lost mass and the largest value alone. With all tokens evicted nothing is kept and no bound holds.
A sink is a token of value 0 that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from headwise.attention.byproducts import window_probabilities
from headwise.errors import HeadwiseError
from headwise.forms import Scoring
from headwise.shapes import want


@dataclass(frozen=True)
class EvictionError:
    """Of every query, float32 or wider [h, g, t]: the lost mass, what eviction moved its output by (`error`, a norm),
    the norm of the dense output, and the bounds of this module."""

    lost: torch.Tensor
    error: torch.Tensor
    norm: torch.Tensor
    after: torch.Tensor
    before: torch.Tensor
    norms: torch.Tensor


def eviction_error(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor, scoring: Scoring
) -> EvictionError:
    """What keeping only the tokens of a mask `kept`, bool [h, n], does to causal attention, and what bounds it.

    q [h, g, t, d] are the last t queries of the n keys k [h, n, d], v [h, n, e]. HeadwiseError where a query keeps
    nothing.
    """
    n = want(k, "h n d", h=q.shape[0], d=q.shape[3])["n"]
    want(kept, "h n", h=q.shape[0], n=n)
    p = window_probabilities(q, k, scoring)
    v = v.to(p.dtype)
    if scoring.sinks is not None:
        p = torch.cat((p, 1 - p.sum(-1, keepdim=True)), -1)
        v, kept = pad(v, (0, 0, 0, 1)), pad(kept, (0, 1), value=True)
    return error_of(p, v, kept)


def error_of(p: torch.Tensor, v: torch.Tensor, kept: torch.Tensor) -> EvictionError:
    """The same from probabilities p [h, g, t, n] and values v [h, n, e]."""
    stays = p * kept[:, None, None]
    left = stays.sum(-1)
    if bool((left <= 0).any()):
        raise HeadwiseError("a query keeps no token that it attends to; keep at least one with a probability above 0")
    lost = (p * ~kept[:, None, None]).sum(-1)
    out = torch.einsum("hgtn,hne->hgte", p, v)
    kept_out = torch.einsum("hgtn,hne->hgte", stays, v) / left[..., None]
    return EvictionError(
        lost=lost,
        error=(out - kept_out).norm(dim=-1),
        norm=out.norm(dim=-1),
        after=lost * _farthest(v, kept, kept_out),
        before=lost / left * _farthest(v, kept, out),
        norms=2 * lost * v.norm(dim=-1).amax(1)[:, None, None],
    )


def _farthest(v: torch.Tensor, kept: torch.Tensor, from_: torch.Tensor) -> torch.Tensor:
    """Distance [h, g, t] of the evicted value farthest from each output [h, g, t, e]; 0 where none is evicted."""
    distance = torch.cdist(from_.flatten(1, 2), v, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.masked_fill(kept[:, None], 0.0).amax(-1).unflatten(1, from_.shape[1:3])
