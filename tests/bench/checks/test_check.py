"""`headwise check`: plans that keep everything pass, plans that do not fail, and the plan file says which."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from headwise.bench.checks.check import Limits, judged, repetition
from headwise.plan import Plan
from headwise.seams.transformers.cache import as_plan, attach
from headwise.seams.transformers.load import load_model
from tests.cli.conftest import Command, headwise, tiny  # noqa: F401 (fixtures)


@pytest.mark.parametrize(("recipe", "passes"), [("streaming(1.0)", True), ("streaming(24, recent=8)", False)])
def test_the_verdict_is_stored_in_the_plan(
    headwise: Command, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, recipe: str, passes: bool  # noqa: F811
) -> None:  # fmt: skip
    path = tmp_path / "a.plan"
    as_plan(attach(load_model(tiny)), recipe).save(path)
    with caplog.at_level(logging.WARNING):
        before = Plan.load(path)
    assert "never checked" in caplog.text and len(caplog.records) == 1
    result = headwise("check", path, tiny, "--context", 900, "--facts", 3, "--json")
    assert result.exit_code == (0 if passes else 1), result.output
    found = json.loads(result.stdout)
    assert found["passed"] is passes
    assert set(found["protocol"]["hashes"]) >= {"data", "model", "versions", "machine"}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        after = Plan.load(path)
    assert [record.message.count("\n") for record in caplog.records] == ([] if passes else [0])
    assert after.quality["check"] == found and after.digest == before.digest
    if not passes:
        assert "failed `headwise check`: KL from dense" in caplog.text


def test_each_part_can_fail() -> None:
    fine = {"needle": [True] * 10, "turns": [True] * 10, "loops": 0.1}
    figures = {"kl": 0.0, "agreement": 1.0, "dense": fine, "plan": fine}
    assert judged(figures, Limits()) == []
    worse = {"kl": 0.2, "agreement": 0.8, "plan": {**fine, "needle": [True] * 8 + [False] * 2}}
    for name, value in worse.items():
        assert len(judged({**figures, name: value}, Limits())) == 1
    looping = {**fine, "loops": 0.5, "turns": [False] * 10}
    assert len(judged({**figures, "plan": looping}, Limits())) == 2


def test_repetition() -> None:
    assert repetition(range(50)) == 0
    assert repetition([1, 2] * 20) == pytest.approx(1 - 2 / 33)
    assert repetition([1, 2]) == 0
