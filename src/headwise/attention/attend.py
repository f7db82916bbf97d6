"""The one entry: which backend computes a call, and why the ones before it did not."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headwise.attention.attended import Attended
from headwise.attention.reference import Reference
from headwise.attention.request import Backend, Request
from headwise.attention.sdpa import Sdpa
from headwise.attention.where import Where
from headwise.errors import HeadwiseError, did_you_mean

BACKENDS: tuple[Backend, ...] = (Sdpa(), Reference())


@dataclass(frozen=True)
class Record:
    """What the ledger keeps of a call: the backend that took it, and the reasons of each that was asked before."""

    backend: str
    refusals: dict[str, list[str]]


def choose_backend(request: Request, backend: str | None = None) -> tuple[Backend, dict[str, list[str]]]:
    """The first backend that accepts, and the reasons of those before it; `backend` forces one by name.

    Raises HeadwiseError for an unknown name, or with the reasons when the forced one refuses.
    """
    refusals: dict[str, list[str]] = {}
    if backend is not None and backend not in (known := [one.name for one in BACKENDS]):
        raise HeadwiseError(f"no attention backend '{backend}'; {did_you_mean(backend, known)}")
    for candidate in BACKENDS:
        if backend is not None and candidate.name != backend:
            continue
        reasons = candidate.refuse(request)
        if not reasons:
            return candidate, refusals
        refusals[candidate.name] = reasons
    told = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in refusals.items())
    raise HeadwiseError(f"no attention backend takes this call ({told}); leave backend=None to fall back to another")


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
    chosen, refusals = choose_backend(request, backend)
    return chosen(request), Record(chosen.name, refusals)


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
