"""NVIDIA's kvpress over transformers' sdpa: `kvpress_worker.py FOLDER`. Each press drops nine tenths."""

from __future__ import annotations

import sys
import time

import torch
from kvpress import AdaKVPress, DuoAttentionPress, SnapKVPress
from serve import serve
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

DROP = 0.9


class DrawnDuo(DuoAttentionPress):
    """Its patterns of trained models are downloaded; which heads stream is drawn here, as for ours."""

    @staticmethod
    def load_attention_pattern(model: PreTrainedModel) -> tuple:
        """Sinks, recent tokens, a score by layer and KV head."""
        shape = model.config.num_hidden_layers, model.config.num_key_value_heads
        return 128, 256, torch.rand(shape, generator=torch.Generator().manual_seed(0)).numpy()


PRESSES = {
    "none": None,
    "SnapKV": SnapKVPress(DROP),
    "AdaKV(SnapKV)": AdaKVPress(SnapKVPress(DROP)),
    "DuoAttention": DrawnDuo(head_compression_ratio=DROP),
}


class KVPress:
    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
        torch.set_grad_enabled(False)
        self.held: dict[str, dict] = {}

    def arms(self, job: str) -> list[str]:
        return list(PRESSES) if job == "keep" else []

    def keep(self, arm: str, tokens: int) -> dict[str, float]:
        """A cache that has read a prompt and was pressed."""
        press, cache = PRESSES[arm], DynamicCache(config=self.model.config)
        self._mask({})
        ids = torch.randint(3, self.model.config.vocab_size, (1, tokens))
        start = time.perf_counter()
        if press is None:
            self._forward(ids, cache, 0)
        else:
            with press(self.model):
                self._forward(ids, cache, 0)
        seconds = time.perf_counter() - start
        self.held[arm] = {"cache": cache, "masked": self._masked(), "place": tokens}
        held = sum(x.untyped_storage().nbytes() for layer in cache.layers for x in (layer.keys, layer.values))
        return {"prefill_s": seconds, "held_bytes": held}

    def step(self, arm: str) -> float:
        """Seconds of one more token. What AdaKV and DuoAttention mask lies on the model, so it is put back first."""
        own = self.held[arm]
        self._mask(own["masked"])
        ids = torch.randint(3, self.model.config.vocab_size, (1, 1))
        start = time.perf_counter()
        self._forward(ids, own["cache"], own["place"])
        own["place"] += 1
        return time.perf_counter() - start

    def close(self, arm: str) -> None:
        del self.held[arm]

    def _forward(self, ids: torch.Tensor, cache: DynamicCache, place: int) -> None:
        places = torch.arange(place, place + ids.shape[1])
        self.model(
            ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            cache_position=places,
            position_ids=places[None],
        )

    def _masked(self) -> dict[int, object]:
        layers = self.model.model.layers
        return {i: getattr(layer.self_attn, "masked_key_indices", None) for i, layer in enumerate(layers)}

    def _mask(self, masked: dict[int, object]) -> None:
        for i, layer in enumerate(self.model.model.layers):
            layer.self_attn.masked_key_indices = masked.get(i)


if __name__ == "__main__":
    serve(KVPress(sys.argv[1]))
