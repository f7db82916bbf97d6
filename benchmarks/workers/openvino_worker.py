"""OpenVINO GenAI's paged pipeline on an exported model: `openvino_worker.py FOLDER THREADS`. Needs no torch."""

from __future__ import annotations

import sys
import time

import numpy as np
import openvino as ov
import openvino_genai as genai
from serve import serve

ARMS = {"": ("bf16", None), "u8 cache": ("u8", None), "1,024 tokens kept": ("bf16", 1024)}  # precision, tokens kept
NEW = 1000  # tokens a request may still write: more than are ever timed
BLOCK = 32  # tokens of one of its cache blocks, with room to spare


class OpenVINO:
    def __init__(self, folder: str, threads: str) -> None:
        self.folder, self.threads = folder, int(threads)
        self.held: dict[str, tuple] = {}

    def arms(self, job: str) -> list[str]:
        return {"prefill": [""], "decode": list(ARMS), "keep": []}[job]

    def prefill(self, arm: str, tokens: int) -> float:
        """Seconds until the first token of a prompt, in one pass."""
        pipe = self._pipe(arm, tokens, sparse=False)
        seconds = self._ask(arm, pipe, tokens, new=1)
        while pipe.has_non_finished_requests():
            pipe.step()
        del self.held[arm]
        return seconds

    def open(self, arm: str, tokens: int) -> dict[str, float]:
        """A cache that a prompt filled. TriShape computes little of its attention and stores all of it."""
        pipe = self._pipe(arm, tokens, sparse=True)
        self._ask(arm, pipe, tokens, NEW)
        self.step(arm)  # the first token after a prompt also evicts
        return {"held_bytes": pipe.get_metrics().kv_cache_size_in_bytes}

    def step(self, arm: str) -> float:
        """Seconds of one more token."""
        pipe, _ = self.held[arm]
        start = time.perf_counter()
        pipe.step()
        return time.perf_counter() - start

    def close(self, arm: str) -> None:
        _, handle = self.held.pop(arm)
        handle.cancel()

    def _pipe(self, arm: str, tokens: int, sparse: bool) -> genai.ContinuousBatchingPipeline:
        precision, kept = ARMS[arm]
        how = genai.SchedulerConfig()
        how.num_kv_blocks = (tokens + NEW) // BLOCK + 64
        how.max_num_batched_tokens = 512 if sparse or kept else tokens
        how.enable_prefix_caching = False
        if sparse:
            how.use_sparse_attention = True
            how.sparse_attention_config = genai.SparseAttentionConfig(mode=genai.SparseAttentionMode.TRISHAPE)
        if kept:
            how.use_cache_eviction = True
            how.cache_eviction_config = genai.CacheEvictionConfig(
                start_size=32, recent_size=128, max_cache_size=kept, aggregation_mode=genai.AggregationMode.NORM_SUM
            )
        hints = {
            "KV_CACHE_PRECISION": precision,
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": "bf16",
        }
        return genai.ContinuousBatchingPipeline(self.folder, how, "CPU", hints)

    def _ask(self, arm: str, pipe: genai.ContinuousBatchingPipeline, tokens: int, new: int) -> float:
        wanted = genai.GenerationConfig()
        wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = new, True, False
        ids = ov.Tensor(np.random.randint(3, 32_000, (1, tokens)).astype(np.int64))
        handle = pipe.add_request(time.monotonic_ns() % 2**31, ids, wanted)
        start = time.perf_counter()
        while not handle.can_read():
            pipe.step()
        seconds = time.perf_counter() - start
        self.held[arm] = pipe, handle
        return seconds


if __name__ == "__main__":
    serve(OpenVINO(*sys.argv[1:]))
