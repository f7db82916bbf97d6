"""transformers' own attention (sdpa) and cache on a checkpoint: `transformers_worker.py FOLDER`."""

from __future__ import annotations

import gc
import sys
import time

import step
import torch
from serve import serve
from transformers import AutoModelForCausalLM, DynamicCache


class Transformers:
    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
        self.held: dict[str, tuple] = {}

    def arms(self, job: str) -> list[str]:
        return [] if job == "keep" else [""]

    def prefill(self, arm: str, tokens: int) -> float:
        """Seconds of a prompt, in one pass."""
        ids = torch.randint(3, self.model.config.vocab_size, (1, tokens))
        start = time.perf_counter()
        with torch.no_grad():
            self.model(ids, past_key_values=DynamicCache(config=self.model.config), use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    def open(self, arm: str, tokens: int) -> dict[str, float]:
        """A cache of random keys and values."""
        cache = step.filled(self.model, None, tokens)
        self.held[arm] = cache, step.stepper(self.model, cache, tokens, "sdpa")
        held = (x.untyped_storage().nbytes() for layer in cache.layers for x in (layer.keys, layer.values))
        return {"held_bytes": sum(held)}

    def step(self, arm: str) -> float:
        """Seconds of one more token."""
        return self.held[arm][1]()

    def close(self, arm: str) -> None:
        del self.held[arm]
        gc.collect()


if __name__ == "__main__":
    serve(Transformers(sys.argv[1]))
