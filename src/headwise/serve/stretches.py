"""Prompts that are read a stretch at a time: between two layers reading may pause, so that others write, and goes on
where it was, with the same sums."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from contextvars import copy_context
from typing import Any

import torch
from greenlet import greenlet

from headwise.seams.transformers.cache import Cache


class Stretches:
    """Reads a prompt into `cache` by `reading`, which gives the logits after each piece. A piece is one forward,
    however often it pauses. To be used and closed in one thread."""

    def __init__(self, cache: Cache, reading: Generator[torch.Tensor, None, None]) -> None:
        self.cache, self._reading = cache, reading
        self._late: Callable[[], bool] = bool
        self._inner: Any = greenlet(self._run)
        self._inner.gr_context = copy_context()

    def go(self, late: Callable[[], bool]) -> torch.Tensor | None:
        """Read on to the end of a piece: the logits after it; None where it is `late`, which is asked before each layer
        but the first, and after the last piece."""
        self._late, self._inner.parent = late, greenlet.getcurrent()
        found: torch.Tensor | None = self._inner.switch()
        return found

    def close(self) -> None:
        """Read no more; what was not read to its end leaves no trace."""
        if self._inner:
            self._inner.parent = greenlet.getcurrent()
            self._inner.throw()
        self._reading.close()

    def _run(self) -> None:
        self.cache.pause = self._pause
        try:
            with closing(self._reading) as reading:
                for logits in reading:
                    self._inner.parent.switch(logits)
        finally:
            self.cache.pause = None

    def _pause(self) -> None:
        if self._late():
            self._inner.parent.switch(None)
