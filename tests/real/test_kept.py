"""On pretrained models: bytes are as predicted, and what is said of a method's answers holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import headwise
from headwise.assets import novel
from headwise.bench.job import Job, novel_job
from headwise.bench.runner import Ran, Runner
from headwise.cli.main import app
from headwise.cost.prediction import predicted_bytes
from headwise.seams.transformers.cache import as_plan, attach
from headwise.seams.transformers.drive import prefill
from headwise.seams.transformers.replay import read_once
from tests.real.conftest import Real

RECIPES = ("", "int8", "int4", "snapkv(0.25) | int8", "expected_attention(0.5) | ada", "streaming(64)", "keydiff(0.1)")


@pytest.mark.parametrize("recipe", RECIPES)
def test_bytes_held_are_those_predicted(real: Real, recipe: str) -> None:
    ids = real.prompt(700)
    cache = headwise.Cache(real.stored, recipe)
    prefill(real.stored, cache, ids, None)
    assert cache.session is not None
    slack = 0.1 if "ada" in recipe else 0  # heads of unlike lengths fill their last pages as it comes
    predicted = predicted_bytes(cache.plan, ids.shape[1], torch.bfloat16)
    assert abs(cache.session.cache_bytes() - predicted) <= slack * predicted


def right(ran: Ran, job: Job) -> list[bool]:
    return [
        answer.text.strip().startswith(question.ask.expected[0].strip())
        for answer, question in zip(ran.answers, job.questions, strict=True)
    ]


def test_eight_bits_keep_the_answers_and_random_eviction_does_not(real: Real) -> None:
    """Facts in the novel, asked after the eviction, in bfloat16."""
    attach(real.stored)
    job = novel_job(real.tokenizer, novel(), 1500, title="novel", facts=10, new_tokens=1)
    recording, runner = read_once(real.stored, job.ids), Runner(real.stored, real.tokenizer)
    seam = attach(real.stored)
    found = {
        recipe: right(runner.run(as_plan(seam, recipe), job, recording=recording), job)
        for recipe in ("", "int8", "random(0.1)")
    }
    assert sum(found[""]) >= 6
    assert sum(found["int8"]) >= sum(found[""]) - 1
    assert sum(found["random(0.1)"]) <= sum(found[""]) // 2


def test_commands_take_the_short_name(real: Real, user_caches: Path, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        told = CliRunner().invoke(app, list(words))
        assert told.exit_code == 0, told.output
        return told.stdout

    assert "2048 tokens in each of 1 sequences" in said("fit", real.name, "--context", "2k")
    assert f"{attach(real.stored).geometry.kv_heads[0]} KV heads" in said("explain", "snapkv(0.25)", real.name)
    small = ("--context", "500", "--facts", "2", "--max-new-tokens", "2", "--state", str(tmp_path))
    ran = json.loads(said("run", real.name, "--recipe", "snapkv(0.5)", *small, "--json"))
    assert ran["model"] == real.name
    assert [row["recipe"] for row in ran["rows"]][:2] == ["dense", "snapkv(0.5)"]
    assert all(row["cache_bytes"] == row["predicted_bytes"] for row in ran["rows"][:2])
