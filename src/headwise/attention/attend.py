"""The doors to attention: arguments are checked here, and calls made of pieces taken apart and joined."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from headwise.errors import HeadwiseError
from headwise.forms import Attended, Composite, Paged, Scoring, Where, join
from headwise.kernels import ops
from headwise.kernels.request import PagesRequest, Part, PartsRequest, Prepared, Request


def attend(q: Tensor, k: Tensor, v: Tensor, where: Where, scoring: Scoring) -> Attended:
    """Attention of `q [h, g, t, d]` over `k [h, n, d]`, `v [h, n, e]` as `where` shows.

    Gives out `[h, g, t, e]` and lse `[h, g, t]`. Computed by the first backend that takes the call; within
    `headwise.kernels.dispatch.only("sdpa")` by that one. Backends read keys alone: sink logits join what they give.
    Raises ShapeError for sizes that disagree, HeadwiseError where no backend that may be asked takes the call.
    """
    scoring.check(q)
    request = Request(q, k, v, where, scoring.of_keys)
    request.check()
    if isinstance(where, Composite) and scoring.edit is None:  # an edit is of all keys of a row
        return scoring.joined(_attend_pieces(request, where))
    return scoring.joined(ops.attend(request))


def _attend_pieces(request: Request, where: Composite) -> Attended:
    """Every piece by itself, added where they share queries."""
    q, k, v, found = request.q, request.k, request.v, []
    for part in where.parts:
        queries, keys = slice(part.queries.start, part.queries.stop), slice(part.keys.start, part.keys.stop)
        found.append(attend(q[:, :, queries], k[:, keys], v[:, keys], part.where, request.scoring))
    edges = sorted({0, q.shape[2]} | {edge for part in where.parts for edge in (part.queries.start, part.queries.stop)})
    strips = []
    for first, last in pairwise(edges):
        over = [Attended.empty(q[:, :, first:last], v.shape[2])]
        for part, attended in zip(where.parts, found, strict=True):
            if part.queries.start <= first < part.queries.stop:
                rows = slice(first - part.queries.start, last - part.queries.start)
                over.append(Attended(attended.out[:, :, rows], attended.lse[:, :, rows]))
        strips.append(join(over))
    return Attended(torch.cat([one.out for one in strips], 2), torch.cat([one.lse for one in strips], 2))


def attend_pages(q: Tensor, paged: Paged, where: Where, scoring: Scoring) -> Attended:
    """Attention of `q [h, g, t, d]` over the pages of h lanes, each as long as it is. Raises as `attend` does.

    Read in place, all lanes at once, where a backend does that; else lanes of equal length are read out as tensors.
    """
    scoring.check(q)
    request = PagesRequest(q, paged, where, scoring.of_keys)
    request.check()
    return scoring.joined(ops.attend_pages(request))


def reads_in_place(q: Tensor, paged: Paged, where: Where, scoring: Scoring) -> bool:
    """Whether `attend_pages` would read these pages where they lie, and not read them out as tensors first."""
    return ops.attend_pages.taken_by(PagesRequest(q, paged, where, scoring.of_keys)) != ops.READ_OUT


def prepare_pages(q: Tensor, parts: Iterable[Part], where: Where, scoring: Scoring) -> Prepared | None:
    """The call that reads pages in place for queries such as `q [h, g, t, d]`, again and again while they lie where
    they do; None where no backend does. where: what is seen of parts of level 0.

    Raises as `attend` does, and HeadwiseError for sink logits: what is read so is a part of attention, which they join
    when it is whole.
    """
    if scoring.edit is not None:
        raise HeadwiseError("no kernel is prepared for edited scores; give `scoring` without its edit")
    if scoring.sinks is not None:
        raise HeadwiseError(
            "pages are prepared for keys alone; give `scoring.of_keys`, and let sinks join what is read"
        )
    request = PartsRequest(q, tuple(parts), where, scoring)
    request.check()
    return ops.prepare_pages.offer(request)
