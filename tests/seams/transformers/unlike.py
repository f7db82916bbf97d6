"""Small random models whose attention layers differ in KV heads and in the width of a head."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
import transformers as t
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

SHAPES = ((8, 2, 16), (8, 4, 16), (4, 1, 32), (6, 3, 32))  # query heads, KV heads and width of a head, by layer
SIZES = dict(
    vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=None, pad_token_id=0,
)  # fmt: skip


class OwnAttention(LlamaAttention):
    """Llama's attention with heads of its own, and so with a rotary embedding of its own."""

    def __init__(self, config: t.LlamaConfig, layer: int, shape: tuple[int, int, int]) -> None:
        own = copy(config)
        own.num_attention_heads, own.num_key_value_heads, own.head_dim = shape
        super().__init__(own, layer)
        self.config, self.rotary = config, LlamaRotaryEmbedding(own)

    def forward(self, hidden_states: torch.Tensor, **how: Any) -> Any:
        how["position_embeddings"] = self.rotary(hidden_states, how["position_ids"])
        return super().forward(hidden_states, **how)


class UnlikeLlama(t.LlamaForCausalLM):
    """A Llama whose layers all attend to everything, each by heads of its own."""

    def __init__(self, config: t.LlamaConfig) -> None:
        super().__init__(config)
        for place, shape in enumerate(SHAPES):
            self.model.layers[place].self_attn = OwnAttention(config, place, shape)


def llama(seed: int = 0) -> UnlikeLlama:
    """Its greedy choices are no near ties."""
    torch.manual_seed(seed)
    return grown(UnlikeLlama(t.LlamaConfig(**SIZES)))


def gemma4(seed: int = 0) -> t.PreTrainedModel:
    """Gemma 4: sliding layers of four KV heads 16 wide, full ones of two 32 wide."""
    torch.manual_seed(seed)
    config = t.Gemma4TextConfig(
        **SIZES | dict(num_attention_heads=4, num_key_value_heads=4), head_dim=16, global_head_dim=32,
        num_global_key_value_heads=2, attention_k_eq_v=True, sliding_window=24, hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=128, layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    return grown(t.Gemma4ForCausalLM(config))


def grown(model: Any) -> Any:
    """Larger weights than by default."""
    model.eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    return model
