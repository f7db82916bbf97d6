"""What the scheduler adds to a step of many answers: about a twentieth of its Python calls on the embedded model."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from headwise.assets import embedded_model
from headwise.compiled.fast import fast
from headwise.kernels.native.library import unusable
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_pair
from headwise.seams.transformers.together import step_together
from headwise.serve.request import Request
from headwise.serve.rows import Rows
from headwise.serve.scheduler import Limits, Scheduler
from tests.serve.alone import prompt
from tests.serve.test_scheduler import GREEDY

ANSWERS, STEPS = 32, 10


def calls(made: Scheduler, steps: int) -> tuple[int, int]:
    """Python calls outside and inside of the forwards of so many steps."""
    counts, depth = [0, 0], 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal depth
        own = frame.f_code is step_together.__code__
        if event == "call":
            counts[depth > 0] += 1
            depth += own
        elif event == "return":
            depth -= own

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for _ in range(steps):
            made.advance()
    finally:
        sys.setprofile(before)
    return counts[0], counts[1]


@pytest.mark.skipif(bool(unusable()), reason="the native kernels are not compiled")
def test_a_step_of_many_answers_is_its_forwards() -> None:
    tokenizer, model = load_pair(str(embedded_model()), "auto", "cpu", False)
    fast(model)
    seam = attach(model)
    made = Scheduler(model, tokenizer, Limits(1 << 30, stall=1e9), Rows(1, 16), ends=())
    for seed in range(ANSWERS):
        plan = Plan.uniform(seam.geometry, "", seam.fingerprint)
        made.submit(Request(tuple(prompt(24 + seed % 9, seed)), plan, 99, GREEDY), lambda event: None)
    while made.stats().writing < ANSWERS:
        made.advance()
    outside, inside = calls(made, STEPS)
    assert outside <= STEPS * ANSWERS * 36, "calls of the scheduler's own for each answer"
    assert outside <= 0.06 * (outside + inside)
    assert inside <= STEPS * ANSWERS * 750, "nothing of a step is prepared anew for all because one has made room"
