"""What patterns and selections chose to read, told to whoever counts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from headwise.forms import Where


@dataclass(frozen=True)
class Chosen:
    """A read of some lanes of one layer: `queries` new tokens over `keys` stored ones, these included, by `heads` query
    heads in all, which saw of them what `where` says."""

    where: Where
    queries: int
    keys: int
    heads: int


_WATCH: ContextVar[Callable[[Chosen], None] | None] = ContextVar("headwise_chosen", default=None)


@contextmanager
def watching(note: Callable[[Chosen], None]) -> Iterator[None]:
    """Inside, `note` is told of every read that a pattern or a selection chose; not of those that read everything."""
    token = _WATCH.set(note)
    try:
        yield
    finally:
        _WATCH.reset(token)


def tell(where: Where, queries: int, keys: int, heads: int) -> None:
    """Tell whoever watches of a read."""
    if (note := _WATCH.get()) is not None:
        note(Chosen(where, queries, keys, heads))
