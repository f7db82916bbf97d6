"""Memory that something takes, as torch's own allocations tell it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch


def allocations(run: Callable[[], object]) -> list[int]:
    """Bytes of all that is allocated and, below 0, let go of while something runs on a processor, in their order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    raw = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(raw, key=lambda event: event.start_ns())]


def peak(run: Callable[[], object]) -> int:
    """The most bytes that are allocated at a time while something runs, beyond what there was before it."""
    return max(accumulate(allocations(run)))
