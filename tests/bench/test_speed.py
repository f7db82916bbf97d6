"""Speed: what times say and when they say nothing. No test here depends on how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.bench.speed import Timer, time_prompt, verdict
from headwise.errors import HeadwiseError
from headwise.seams.transformers.cache import as_plan, attach
from tests.bench.conftest import quiet
from tests.cli.conftest import Command, headwise, tiny  # noqa: F401 (fixtures)


def test_times_say_what_they_can() -> None:
    steady = [1.0, 1.01, 0.99, 1.0, 1.0]
    assert verdict([0.5] * 5, steady, steady)["words"] == "2.00x faster"
    assert verdict([2.0] * 5, steady, steady)["words"] == "no gain here (2.00x slower)"
    assert not verdict([2.0] * 5, steady, steady)["faster"]
    noisy = verdict([0.8] * 5, [1.0] * 5, [1.4] * 5)
    assert "too noisy" in noisy["words"] and not noisy["faster"]
    wild = verdict([0.9] * 4, [0.5, 1.0, 1.5, 2.0], [0.5, 1.0, 1.5, 2.0])
    assert "too noisy" in wild["words"]


def test_bytes_and_batches_are_real(loaded: tuple[Any, Any]) -> None:
    model = loaded[0]
    plan = as_plan(attach(model), "streaming(40)")
    ids = torch.randint(2, 500, (3, 200), generator=torch.Generator().manual_seed(0))
    one, three = time_prompt(model, plan, ids[:1], 4), time_prompt(model, plan, ids, 4)
    dense = time_prompt(model, as_plan(attach(model), ""), ids[:1], 4)
    assert three.cache_bytes == 3 * one.cache_bytes < 3 * dense.cache_bytes
    assert one.peak_bytes > one.cache_bytes and 0 < one.first_token_s < one.end_to_end_s
    memory = 3 * dense.cache_bytes
    found = Timer(model, plan, 3, 3, memory).measure([100, 200], quiet)
    assert found["batch"]["plan"]["rows"] > found["batch"]["dense"]["rows"] >= 2
    assert [part["context"] for part in found["contexts"]] == [100, 200]
    assert found["process_peak_bytes"] > 50 * 2**20
    with pytest.raises(HeadwiseError, match="at least 2 and 3"):
        Timer(model, plan, 1, 3, memory).measure([100], quiet)


def test_the_command(headwise: Command, tiny: Path) -> None:  # noqa: F811
    options = [tiny, "--context", "100", "--new-tokens", 3, "--repetitions", 3, "--batch-memory", "1MiB"]
    result = headwise("speed", "streaming(40)", *options)
    assert result.exit_code == 0, result.output
    assert "each token" in result.stdout and "peak memory" in result.stdout
    found = json.loads(headwise("speed", "streaming(40)", *options, "--json").stdout)
    assert found["protocol"]["hashes"]["machine"] and found["contexts"][0]["token_s"]["words"]
