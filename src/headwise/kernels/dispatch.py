"""Who computes an operation: the first backend that takes the call; why those before it did not is noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, ParamSpec, TypeVar

from headwise.errors import HeadwiseError, did_you_mean
from headwise.rooms import Room

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Kernel(Generic[P, R]):
    """How one backend computes one operation. `refuse` gives the reasons why it will not take a call, in words; none is
    a promise that `run` works for it."""

    refuse: Callable[P, list[str]]
    run: Callable[P, R]


@dataclass(frozen=True)
class Backend:
    """A way to compute: its kernels by the name of their operation. Of those that take a call the lowest `rank` has it.

    available: whether it works on this machine, found by running a tiny problem, and what was found.
    """

    name: str
    rank: int
    available: Callable[[], tuple[bool, str]]
    kernels: Mapping[str, Kernel[Any, Any]]


@dataclass(frozen=True)
class Record:
    """One call: its operation, the backend that computed it, and the reasons of each that was asked before."""

    op: str
    backend: str
    refusals: Mapping[str, list[str]]


BACKENDS: Room[Backend] = Room("attention backend", "headwise.kernels")
_only: ContextVar[tuple[str, ...] | None] = ContextVar("headwise_backends", default=None)
NOTE: ContextVar[Callable[[Record], None] | None] = ContextVar("headwise_note", default=None)  # told of every call


class Op(Generic[P, R]):
    """An operation. Called, it is computed by the first backend that takes the call; see `only` and `noted`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result, the call noted; HeadwiseError with the reasons of all, where no backend takes it."""
        kernel, record = self._choose(*args, **kwargs)
        if kernel is None:
            reasons = [f"{name}: {', '.join(told)}" for name, told in record.refusals.items()] or ["none has it"]
            raise HeadwiseError(f"no attention backend takes this call of {self.name} ({'; '.join(reasons)})")
        if (note := NOTE.get()) is not None:
            note(record)
        return kernel.run(*args, **kwargs)

    def offer(self, *args: P.args, **kwargs: P.kwargs) -> R | None:
        """The result, nothing noted; None where no backend takes the call."""
        kernel, _ = self._choose(*args, **kwargs)
        return None if kernel is None else kernel.run(*args, **kwargs)

    def taken_by(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The backend that would compute it; empty where none takes the call."""
        return self._choose(*args, **kwargs)[1].backend

    def _choose(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Kernel[P, R] | None, Record]:
        refusals: dict[str, list[str]] = {}
        for name, kernel in _able(self.name, _only.get(), BACKENDS.size):
            reasons = kernel.refuse(*args, **kwargs)
            if not reasons:
                return kernel, Record(self.name, name, refusals)
            refusals[name] = reasons
        return None, Record(self.name, "", refusals)


@cache
def _able(op: str, allowed: tuple[str, ...] | None, known_so_far: int) -> tuple[tuple[str, Kernel[Any, Any]], ...]:
    """The backends that have an operation, of the allowed ones, in the order in which they are asked; asked anew when
    another one is made known."""
    known = BACKENDS.all()
    for name in allowed or ():
        if name not in known:
            raise HeadwiseError(f"no attention backend '{name}'; {did_you_mean(name, list(known))}")
    ranked = sorted(known.values(), key=lambda one: one.rank)
    asked = (one for one in ranked if op in one.kernels and (allowed is None or one.name in allowed))
    return tuple((one.name, one.kernels[op]) for one in asked)


@contextmanager
def only(*backends: str) -> Iterator[None]:
    """Inside, these backends alone are asked; HeadwiseError where none of them takes a call."""
    token = _only.set(backends)
    try:
        yield
    finally:
        _only.reset(token)


@contextmanager
def noting(note: Callable[[Record], None]) -> Iterator[None]:
    """Inside, `note` is handed the record of every call."""
    token = NOTE.set(note)
    try:
        yield
    finally:
        NOTE.reset(token)


@contextmanager
def noted() -> Iterator[list[Record]]:
    """Inside, the records of all calls so far."""
    records: list[Record] = []
    with noting(records.append):
        yield records
