"""Small decoders of random weights, for experiments that train a model of their own."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from headwise.seams.transformers.cache import PreTrainedModel


def small_decoder(vocabulary: int, layers: int, heads: int, width: int, seed: int) -> PreTrainedModel:
    """A Llama of so many layers and heads, `width` channels wide, over so many tokens; its own at every seed."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=width // heads, max_position_embeddings=512,
        initializer_range=width**-0.5, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
