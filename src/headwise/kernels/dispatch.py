"""Which backend computes a call, and why the ones before it did not."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.errors import HeadwiseError, did_you_mean
from headwise.kernels.native.backend import Native
from headwise.kernels.reference import Reference
from headwise.kernels.request import Backend, Request
from headwise.kernels.sdpa import Sdpa

NATIVE = Native()
BACKENDS: tuple[Backend, ...] = (NATIVE, Sdpa(), Reference())


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
