"""What the tests of steps that fail share: everything a session is, to compare, and errors at any place of a step."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import headwise
from headwise.engine.session import Session

HOUSE = str(Path(headwise.__file__).parent)


class Interrupted(Exception):
    """The error that a test plants."""


@contextmanager
def interrupted_at(line: int) -> Iterator[Callable[[], int]]:
    """Raise `Interrupted` before the `line`-th line of headwise's own code that runs from here on (0: never). Gives a
    function that tells how many lines have run."""
    ran = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal ran
        if not frame.f_code.co_filename.startswith(HOUSE):
            return None
        if event == "line":
            ran += 1
            if ran == line:
                sys.settrace(None)
                raise Interrupted(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: ran
    finally:
        sys.settrace(before)


def facts(session: Session) -> dict[str, Any]:
    """Everything that a session is, as values that compare with ==, tensors as bytes."""
    ledger = copy.deepcopy(vars(session.ledger))
    found: dict[str, Any] = {"seen": list(session.seen), "passed": session.passed, "clock": dict(session.clock)}
    found |= {f"ledger.{name}": one for name, one in ledger.items()}
    found["open"] = (session._step, set(session._open))
    tensors = {f"memory.{name}": one for name, one in session.memories.state().items()}
    for place, group in enumerate(session.groups):
        found[f"{place}.counts"] = (list(group.planned), list(group.since), list(group.passed))
        found[f"{place}.lengths"], found[f"{place}.nbytes"] = list(group.store.lengths), group.store.nbytes
        tensors |= {f"{place}.{name}": one for name, one in group.store.state().items()}
        for name in ("tails", "uncounted", "lses"):
            tensors |= {f"{place}.{name}.{row}": one for row, one in getattr(group, name).items()}
        if group.dropped is not None:
            tensors |= {f"{place}.dropped.{name}": one for name, one in group.dropped.state().items()}
        if session.tier is not None:
            del found[f"{place}.nbytes"]  # which pages are near is no state
    return found | {name: (one.dtype, one.shape, one.contiguous().view(-1).tolist()) for name, one in tensors.items()}


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the facts in which two sessions differ, NaN equal to itself."""
    return sorted(name for name in a.keys() | b.keys() if repr(a.get(name)) != repr(b.get(name)))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit."""
    return torch.equal(a.nan_to_num(), b.nan_to_num())
