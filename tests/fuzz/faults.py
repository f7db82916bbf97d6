"""Errors at any point inside a piece of work: at its n-th torch operation, or before its n-th line.

The same work is done once with a counter first, so that a point can be drawn from all there are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import transformers
from torch.utils._python_dispatch import TorchDispatchMode

import headwise

# The commit is the moment in which a forward has succeeded: behind it there is nothing to take back any more.
COMMITS = ("commit_call", "commit")
LINES_OF = (str(Path(headwise.__file__).parent), str(Path(transformers.__file__).parent / "models"))


Result = TypeVar("Result")


class Injected(RuntimeError):
    """An operation failed, as one does where memory is short."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, by no one's hand."""


class Operations(TorchDispatchMode):
    """Counts torch operations, and fails before number `at`."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self.at:
            raise Injected(f"operation {self.count}, {func}")
        return func(*args, **(kwargs or {}))


class Lines:
    """Counts lines of headwise and of the models, and interrupts before number `at`, as Ctrl-C does."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count = at, 0

    def __enter__(self) -> Lines:
        self.before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        return self._line if code.co_filename.startswith(LINES_OF) and code.co_name not in COMMITS else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "line":
            self.count += 1
            if self.count == self.at:
                where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise Interrupted(f"line {self.count}, {where}")
        return self._line


KINDS: dict[str, type[Operations | Lines]] = {"operation": Operations, "line": Lines}


def attempt(kind: str, at: int, work: Callable[[], Result]) -> tuple[str, Result | None]:
    """Do the work with an error at point `at`: what was raised and None; or "" and its result where it ended before."""
    try:
        with KINDS[kind](at):
            return "", work()
    except (Injected, Interrupted) as error:
        return str(error) or type(error).__name__, None


def fails(kind: str, at: int, work: Callable[[], object]) -> str:
    """Do the work with an error at point `at`; what was raised, "" where the work ended before."""
    return attempt(kind, at, work)[0]
