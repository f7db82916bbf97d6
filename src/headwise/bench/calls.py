"""How many Python calls work takes, which unlike its seconds do not hang on what else a machine does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


def calls(run: Callable[[], object], inside: CodeType, times: int) -> tuple[int, int]:
    """Python calls outside and inside of a function, told by its code, while `run` is run so many times. Whoever
    profiled before goes on afterwards."""
    counts, depth = [0, 0], 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal depth
        own = frame.f_code is inside
        if event == "call":
            counts[depth > 0] += 1
            depth += own
        elif event == "return":
            depth -= own

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for _ in range(times):
            run()
    finally:
        sys.setprofile(before)
    return counts[0], counts[1]
