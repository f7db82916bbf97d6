"""Attention in plain torch, written to be read: the oracle of every other backend. It takes every request.

Scores, mask, softmax, weighted sum; in float32 (float64 for float64), by blocks of queries.
"""

from __future__ import annotations

import torch

from headwise.forms import Attended, Buckets, Full, Gathered, Indices, Scoring
from headwise.forms.where import BLOCK_ELEMENTS
from headwise.kernels.reference.scores import probabilities, score_blocks, scores, spoiled, weigh, wide
from headwise.kernels.request import Request


def attend(request: Request) -> Attended:
    """Attention of a request."""
    edit = request.scoring.edit
    lowered = request.where.lowered if edit is None else None
    if isinstance(lowered, Indices):
        return _gathered(request, lowered)
    if isinstance(lowered, Buckets):
        return _bucketed(request, lowered)
    if isinstance(lowered, Gathered):
        return _taken(request, lowered)
    q, k, v = wide(request.q), wide(request.k), wide(request.v)
    broken = spoiled(v)
    outs, lses = [], []
    for _, s, visible in score_blocks(q, k, request.where, request.scoring):
        p, lse = probabilities(s if edit is None else edit(s, visible), visible)
        outs.append(weigh(p, v, broken, visible))
        lses.append(lse)
    return Attended(torch.cat(outs, 2).to(request.q.dtype), torch.cat(lses, 2))


def _gathered(request: Request, chosen: Indices) -> Attended:
    """Per head, take the chosen keys out first: the others may be unused pages full of NaN."""
    (_, g, t, _), n = request.q.shape, request.k.shape[1]
    got = Attended.empty(wide(request.q), request.v.shape[2])
    queries = torch.arange(n - t, n, device=request.k.device)
    for head, tokens in enumerate(chosen.lists):
        index = tokens.to(request.k.device)
        q, k, v = wide(request.q[head, None]), wide(request.k[head, index][None]), wide(request.v[head, index][None])
        broken, step = spoiled(v), max(1, BLOCK_ELEMENTS // max(1, g * len(index)))
        for start in range(0, t, step):
            rows = slice(start, start + step)
            visible = (index[None] <= queries[rows, None])[None]
            s = scores(q[:, :, rows], k, request.scoring)
            if chosen.bias is not None:  # of each query, or of all alike
                bias = chosen.bias[head]
                s = s + (bias if bias.shape[1] == 1 else bias[:, rows]).to(s)
            p, lse = probabilities(s, visible)
            got.out[head, :, rows], got.lse[head, :, rows] = weigh(p, v, broken, visible)[0], lse[0]
    return Attended(got.out.to(request.q.dtype), got.lse)


def _bucketed(request: Request, where: Buckets) -> Attended:
    """Some blocks of a head at a time: their queries and keys are taken out, the results put back in order."""
    (h, g, _, _), (blocks, m) = request.q.shape, where.keys.shape[1:]
    got = Attended.empty(wide(request.q), request.v.shape[2])
    step = max(1, BLOCK_ELEMENTS // (g * where.queries.shape[3] * m))
    group = torch.arange(g, device=request.q.device)[:, None, None]
    for head in range(h):
        for start in range(0, blocks, step):
            rows, index = where.queries[head, :, start : start + step], where.keys[head, start : start + step]
            bias = where.bias[head, start : start + step, None]
            k, v = wide(request.k[head, index]), wide(request.v[head, index])
            q = wide(request.q[head, group, rows]).transpose(0, 1)  # [blocks, g, r, d]
            s = scores(q, k, request.scoring) + bias[:, None].to(q)
            p, lse = probabilities(s, bias > -torch.inf)
            got.out[head, group, rows] = weigh(p, v, spoiled(v), bias > -torch.inf).transpose(0, 1)
            got.lse[head, group, rows] = lse.transpose(0, 1)
    return Attended(got.out.to(request.q.dtype), got.lse)


def _taken(request: Request, where: Gathered) -> Attended:
    """Some blocks of a head at a time, as above; each of its queries sees what is stored before it."""
    (_, g, t, _), n = request.q.shape, request.k.shape[1]
    got = Attended.empty(wide(request.q), request.v.shape[2])
    for head in range(len(request.k)):
        for one in where.taken(head, t, n, BLOCK_ELEMENTS // g):
            k, v = wide(request.k[head, one.keys]), wide(request.v[head, one.keys])
            q = wide(request.q[head][:, one.rows]).transpose(0, 1)  # [blocks, g, r, d]
            p, lse = probabilities(scores(q, k, request.scoring), one.visible)
            got.out[head][:, one.rows] = weigh(p, v, spoiled(v), one.visible).transpose(0, 1)
            got.lse[head][:, one.rows] = lse.transpose(0, 1)
    return Attended(got.out.to(request.q.dtype), got.lse)


def available() -> tuple[bool, str]:
    """Always: averages two equal keys to see that torch works."""
    ones = torch.ones(1, 1, 1, 2)
    got = attend(Request(ones, ones[0].expand(1, 2, 2), ones[0].expand(1, 2, 2), Full(), Scoring(1.0))).out
    return bool((got == 1).all()), "plain torch on any device"
