"""A small random Llama and random ids: what tests of the seam run."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def build(seed: int = 0, **changes: int) -> LlamaForCausalLM:
    """A model whose greedy choices are no near ties."""
    torch.manual_seed(seed)
    sizes = dict(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**sizes | changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    return model


def tokens(count: int, seed: int = 1, rows: int = 1) -> torch.Tensor:
    """Random ids [rows, count]."""
    return torch.randint(1, 128, (rows, count), generator=torch.Generator().manual_seed(seed))
