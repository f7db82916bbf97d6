"""Tokens per second of forward, backward and update, for each stage of a recipe on one device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from .data import composer_of, make_batch
from .recipe import Recipe
from .train import Options, Trainer


def throughput(
    recipe: Recipe, data: Path, options: Options | None = None, seconds: float = 8.0
) -> Iterator[dict[str, float]]:
    """One row per stage: context, tokens/s of the device, of one data process, peak memory in GiB."""
    options = options or Options()
    composer = composer_of(data, "train")
    trainer = Trainer(recipe, options)
    cuda = trainer.device.type == "cuda"
    for stage in recipe.stages:
        began = time.monotonic()
        batch = make_batch(composer, stage, "throughput")
        made = time.monotonic() - began
        if cuda:
            batch = batch.to(trainer.device)
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        float(trainer.step(batch, 0.0)[2])
        compiled = time.monotonic() - began
        float(trainer.step(batch, 0.0)[2])
        steps, began = 0, time.monotonic()
        while steps == 0 or time.monotonic() - began < seconds:
            float(trainer.step(batch, 0.0)[2])
            steps += 1
        rate = steps * stage.step_tokens / (time.monotonic() - began)
        yield {
            "context": stage.context,
            "rows": stage.rows,
            "tokens_per_s": round(rate),
            "data_tokens_per_s_per_worker": round(stage.step_tokens / made),
            "first_step_s": round(compiled, 1),
            "peak_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else 0.0,
            "stage_minutes": round(stage.tokens / rate / 60, 2),
        }
