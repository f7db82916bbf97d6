"""The one entry: which backend computes a call, and why the ones before it did not."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from headwise.forms.attended import Attended, join
from headwise.forms.paged import Paged
from headwise.forms.pieces import Composite
from headwise.forms.where import Where
from headwise.kernels.dispatch import BACKENDS, NATIVE, Record, choose_backend
from headwise.kernels.native.decode import Decode, fits
from headwise.kernels.native.held import Held, Softmax
from headwise.kernels.request import Request


def attend_with_record(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    where: Where,
    *,
    scale: float,
    softcap: float | None = None,
    backend: str | None = None,
) -> tuple[Attended, Record]:
    """As `attend`, with the backend that was used and each refusal before it."""
    request = Request(q, k, v, where, scale, softcap)
    request.check()
    if isinstance(where, Composite):
        return _attend_pieces(request, where, backend)
    chosen, refusals = choose_backend(request, backend)
    return chosen(request), Record(chosen.name, refusals)


def _attend_pieces(request: Request, where: Composite, backend: str | None) -> tuple[Attended, Record]:
    """Every piece by itself, added where they share queries; the record names the backends of all."""
    q, k, v, records, found = request.q, request.k, request.v, [], []
    for part in where.parts:
        queries, keys = slice(part.queries.start, part.queries.stop), slice(part.keys.start, part.keys.stop)
        attended, record = attend_with_record(
            q[:, :, queries], k[:, keys], v[:, keys], part.where, scale=request.scale, softcap=request.softcap,
            backend=backend,
        )  # fmt: skip
        found.append(attended)
        records.append(record)
    edges = sorted({0, q.shape[2]} | {edge for part in where.parts for edge in (part.queries.start, part.queries.stop)})
    strips = []
    for first, last in pairwise(edges):
        over = [Attended.empty(q[:, :, first:last], v.shape[2])]
        for part, attended in zip(where.parts, found, strict=True):
            if part.queries.start <= first < part.queries.stop:
                rows = slice(first - part.queries.start, last - part.queries.start)
                over.append(Attended(attended.out[:, :, rows], attended.lse[:, :, rows]))
        strips.append(join(over))
    both = Attended(torch.cat([one.out for one in strips], 2), torch.cat([one.lse for one in strips], 2))
    refusals = {name: reasons for record in records for name, reasons in record.refusals.items()}
    return both, Record(" + ".join(sorted({record.backend for record in records})), refusals)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    where: Where,
    *,
    scale: float,
    softcap: float | None = None,
    backend: str | None = None,
) -> Attended:
    """Attention of `q [h, g, t, d]` over `k [h, n, d]`, `v [h, n, e]` as `where` shows.

    Gives out `[h, g, t, e]` and lse `[h, g, t]`. Scores are q . k * scale, capped as softcap * tanh(s / softcap) if
    given. `backend` forces one by name.
    Raises ShapeError for sizes that disagree, HeadwiseError for a forced backend that is unknown or refuses.
    """
    return attend_with_record(q, k, v, where, scale=scale, softcap=softcap, backend=backend)[0]


def prepare_pages(
    q: Tensor, paged: Paged, where: Where, *, scale: float, softcap: float | None = None
) -> Decode | None:
    """The kernel that reads these pages in place for queries such as `q [h, g, t, d]`, again and again while they lie
    where they do; None where none does. Raises as `attend` does."""
    paged.check(q, where)
    softmax = Softmax(scale, softcap)
    if NATIVE not in BACKENDS or not fits(q, where) or NATIVE.refuse_pages(q, paged, where, softmax):
        return None
    return Decode(Held.paged(paged), softmax, NATIVE.level)


def attend_pages(
    q: Tensor, paged: Paged, where: Where, *, scale: float, softcap: float | None = None, backend: str | None = None
) -> tuple[Attended, Record]:
    """Attention of `q [h, g, t, d]` over the pages of h lanes, each as long as it is; with the backend that was used.

    The native kernels read pages in place, all lanes at once. Where they refuse, lanes of equal length are read out as
    tensors, run by run, and go the way of `attend`. Raises as `attend` does.
    """
    paged.check(q, where)
    refused: dict[str, list[str]] = {}
    if NATIVE in BACKENDS and backend in (None, NATIVE.name):
        softmax = Softmax(scale, softcap)
        reasons = NATIVE.refuse_pages(q, paged, where, softmax)
        if not reasons:
            return NATIVE.read_pages(q, paged, where, softmax), Record(NATIVE.name, {})
        refused = {f"{NATIVE.name} on pages": reasons}
    runs = paged.dense()
    if where.heads is not None and len(runs) > 1:  # its lists are not cut
        runs = [(slice(0, len(paged.lengths)), torch.cat([k for _, k, _ in runs]), torch.cat([v for _, _, v in runs]))]
    parts = [
        attend_with_record(q[lanes], k, v, where, scale=scale, softcap=softcap, backend=backend) for lanes, k, v in runs
    ]
    record = parts[0][1]
    if len(parts) == 1:
        return parts[0][0], Record(record.backend, refused | record.refusals)
    out = torch.cat([attended.out for attended, _ in parts])
    lse = torch.cat([attended.lse for attended, _ in parts])
    return Attended(out, lse), Record(record.backend, refused | record.refusals)
