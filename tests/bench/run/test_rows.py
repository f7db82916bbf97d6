"""The rows of `headwise run`: the control can fail."""

from __future__ import annotations

from typing import Any

import pytest

from headwise.assets import novel
from headwise.bench.arms import Arm
from headwise.bench.frame import Frame
from headwise.bench.job import novel_job
from headwise.bench.run.rows import run_arms
from headwise.bench.runner import Runner
from headwise.errors import HeadwiseError
from headwise.seams.transformers.cache import attach
from tests.bench.conftest import quiet

Loaded = tuple[Any, Any]


def test_the_control_fails_when_it_should(loaded: Loaded) -> None:
    model, tokenizer = loaded
    job = novel_job(tokenizer, novel(), 800, title="", facts=2, new_tokens=8)
    frame = Frame(attach(model), job.tokens, model.dtype)
    arms = [Arm("dense", "dense"), Arm("control", "streaming(40, recent=8)")]
    with pytest.raises(HeadwiseError, match="A/A control failed"):
        list(run_arms(Runner(model, tokenizer, chunk=200), job, frame, arms, quiet))
