"""headwise on a checkpoint, its weights in fewer bits if told so: `headwise_worker.py FOLDER [int8 | int4]`.

See `benchmarks/peers.py` for what is asked.
"""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import replace

import step
import torch
from serve import serve
from transformers import AutoModelForCausalLM

import headwise
from headwise.plan import Plan
from headwise.seams.transformers.cache import as_plan
from headwise.seams.transformers.drive import prefill

DECODE = {"": "", "int8 cache": "int8", "int4 cache": "int4", "1,024 tokens kept": "streaming(1024)"}
KEEP = {
    "snapkv": "snapkv(0.1)",
    "snapkv | ada": "snapkv(0.1) | ada",
    "duo": "duo(384, sinks=128, recent=256, sparsity=0.9)",
}


class Headwise:
    def __init__(self, folder: str, weights: str | None = None) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        headwise.fast(self.model, weights)
        self.seam = headwise.attach(self.model)
        self.held: dict[str, tuple] = {}

    def arms(self, job: str) -> list[str]:
        return list({"prefill": {"": ""}, "decode": DECODE, "keep": KEEP}[job])

    def prefill(self, arm: str, tokens: int) -> float:
        """Seconds of a prompt."""
        return self._read(headwise.Cache(self.model, arm), tokens)

    def open(self, arm: str, tokens: int) -> dict[str, float]:
        """A cache as a prompt of random tokens leaves it."""
        return self._hold(arm, step.filled(self.model, DECODE[arm], tokens), tokens)

    def keep(self, arm: str, tokens: int) -> dict[str, float]:
        """A cache that has read a prompt and evicted."""
        cache = headwise.Cache(self.model, self._plan(KEEP[arm]))
        seconds = self._read(cache, tokens)
        return {"prefill_s": seconds, **self._hold(arm, cache, tokens)}

    def step(self, arm: str) -> float:
        """Seconds of one more token."""
        return self.held[arm][1]()

    def close(self, arm: str) -> None:
        del self.held[arm]
        gc.collect()

    def _plan(self, recipe: str) -> Plan:
        """Which heads stream is drawn at random, as for kvpress: a random model has no retrieval heads to find."""
        plan = as_plan(self.seam, recipe)
        gates = torch.rand(plan.geometry.by_head, generator=torch.Generator().manual_seed(0))
        return replace(plan, calibration={"duo.gates": gates})

    def _read(self, cache: headwise.Cache, tokens: int) -> float:
        ids = torch.randint(3, self.model.config.vocab_size, (1, tokens))
        start = time.perf_counter()
        prefill(self.model, cache, ids)
        return time.perf_counter() - start

    def _hold(self, arm: str, cache: headwise.Cache, tokens: int) -> dict[str, float]:
        self.held[arm] = cache, step.stepper(self.model, cache, tokens, "headwise")
        plan = cache.plan
        budget = sum(
            plan.count(recipe, layer, tokens)
            * len(heads)
            * (shape.key_width + shape.value_width)
            * self.model.dtype.itemsize
            for layer, shape in enumerate(plan.geometry.layers)
            for recipe, heads in plan.groups(layer)
            if recipe.compress is None
        )
        return {"held_bytes": cache.nbytes, "budget_bytes": budget}


if __name__ == "__main__":
    serve(Headwise(*sys.argv[1:]))
