"""llama.cpp's prompt lookup through llama-cpp-python: `llamacpp_lookup_worker.py FILE.gguf THREADS TOKENS`."""

from __future__ import annotations

import sys
import time
from itertools import islice

from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from serve import serve

GUESSES = 10  # at once, as transformers' prompt lookup is asked for


class Lookup:
    """One model, which guesses or does not. tokens: the longest text."""

    def __init__(self, path: str, threads: str, tokens: str) -> None:
        # where guesses are checked the logits of the whole text are kept; without guesses they cost memory alone
        self.model = Llama(
            path, n_gpu_layers=0, n_ctx=int(tokens), n_batch=2048, n_threads=int(threads),
            n_threads_batch=int(threads), flash_attn=True, logits_all=True, verbose=False,
        )  # fmt: skip

    def ready(self) -> bool:
        """Whether the model is loaded."""
        return True

    def write(self, guessing: bool, ids: list[int], new: int) -> tuple[list[int], float]:
        """The greedy `new` tokens after a prompt, and the seconds from the first of them to the last."""
        self.model.draft_model = LlamaPromptLookupDecoding(num_pred_tokens=GUESSES) if guessing else None
        texts = self.model.generate(ids, temp=0.0)
        first = next(texts)
        start = time.perf_counter()
        return [first, *islice(texts, new - 1)], time.perf_counter() - start


if __name__ == "__main__":
    serve(Lookup(*sys.argv[1:]))
