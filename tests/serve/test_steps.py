"""What the scheduler adds to a step of many answers: at most 4 % of its Python calls on the embedded model."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")

from headwise.assets import embedded_model
from headwise.bench.calls import calls
from headwise.compiled.fast import fast
from headwise.decoding.drafters.lookup import Lookup
from headwise.kernels.native.library import unusable
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_pair
from headwise.seams.transformers.together import step_together
from headwise.serve.drafts import Drafting
from headwise.serve.metrics import Metrics
from headwise.serve.request import Request
from headwise.serve.rows import Rows
from headwise.serve.scheduler import Limits, Scheduler
from tests.serve.alone import prompt
from tests.serve.test_scheduler import GREEDY

ANSWERS, STEPS = 32, 10


@pytest.mark.skipif(bool(unusable()), reason="the native kernels are not compiled")
def test_a_step_of_many_answers_is_its_forwards() -> None:
    tokenizer, model = load_pair(str(embedded_model()), "auto", "cpu", False)
    fast(model)
    seam = attach(model)
    made = Scheduler(
        model,
        tokenizer,
        Limits(1 << 30, stall=1e9),
        Rows(1, 16),
        ends=(),
        drafting=Drafting(Lookup()),
        observe=Metrics().observe,
    )
    for seed in range(ANSWERS):
        plan = Plan.uniform(seam.geometry, "", seam.fingerprint)
        made.submit(Request(tuple(prompt(24 + seed % 9, seed)), plan, 99, GREEDY, draft="auto"), lambda event: None)
    while made.stats().writing < ANSWERS:
        made.advance()
    outside, inside = calls(made.advance, step_together.__code__, STEPS)
    assert outside <= STEPS * ANSWERS * 26, "calls of the scheduler's own for each answer"
    assert outside <= 0.04 * (outside + inside)
    assert inside <= STEPS * ANSWERS * 750, "nothing of a step is prepared anew for all because one has made room"
