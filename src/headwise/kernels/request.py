"""What a backend is asked, and what a backend is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms.attended import Attended
from headwise.forms.where import Where
from headwise.shapes import want


@dataclass(frozen=True)
class Request:
    """One call of attention: `q [h, g, t, d]`, `k [h, n, d]`, `v [h, n, e]`, scores = softcap(q . k * scale)."""

    q: Tensor
    k: Tensor
    v: Tensor
    where: Where
    scale: float
    softcap: float | None = None

    def check(self) -> None:
        """Raise HeadwiseError unless shapes, types, devices and `where` agree."""
        q, k, v = self.q, self.k, self.v
        if q.dim() != 4 or k.dim() != 3 or v.dim() != 3 or q.shape[::3] != k.shape[::2] or k.shape[:2] != v.shape[:2]:
            sizes = want(q, "h g t d")
            sizes = want(k, "h n d", h=sizes["h"], d=sizes["d"])
            want(v, "h n e", h=sizes["h"], n=sizes["n"])
        if not q.numel() or not v.shape[2]:
            raise ShapeError(f"attention of no queries or no width: q is {list(q.shape)}, v is {list(v.shape)}")
        if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
            raise HeadwiseError(f"q, k and v must share one floating type, got {q.dtype}, {k.dtype}, {v.dtype}")
        if not q.device == k.device == v.device:
            raise HeadwiseError(f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}")
        if self.softcap is not None and not self.softcap > 0:
            raise HeadwiseError(f"softcap={self.softcap} must be positive; None means no cap")
        if self.where.heads not in (None, q.shape[0]):
            raise ShapeError(f"{type(self.where).__name__} has lists for {self.where.heads} heads, q has {q.shape[0]}")
        self.where.check(q.shape[2], k.shape[1])


class Backend(Protocol):
    """One way to compute a Request. `refuse` says why it will not; an empty list is a promise that the call works."""

    name: str

    def available(self) -> tuple[bool, str]:
        """Whether it works on this machine, found by running a tiny problem, and what was found."""

    def refuse(self, request: Request) -> list[str]:
        """Reasons not to take this request; empty to accept."""

    def __call__(self, request: Request) -> Attended: ...
