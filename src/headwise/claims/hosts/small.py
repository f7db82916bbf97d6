"""The shape of the small models that are trained for hosts, and how their weights begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from headwise.seams.transformers.cache import PreTrainedModel

WINDOW = 2  # tokens that a layer sees that does not see all
WIDTH = 64


def model_of(full: Sequence[bool], vocabulary: int, kv_heads: int, positions: int, seed: int) -> PreTrainedModel:
    """A decoder with two query heads of 32 for each of `kv_heads`, drawn from `seed`. full: for every layer, whether it
    sees all tokens. positions: the most tokens of a text."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=len(full),
        num_attention_heads=2 * kv_heads, num_key_value_heads=kv_heads, head_dim=32, max_position_embeddings=positions,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        layer_types=["full_attention" if sees else "sliding_attention" for sees in full], use_sliding_window=True,
        sliding_window=WINDOW, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def start(model: PreTrainedModel, classes: int, values: int) -> torch.Tensor:
    """Weights that let a signal through, and embeddings that say kind, class and value; these [vocabulary, WIDTH] are
    returned. Ids are values by class, then questions by class, then noise."""
    embedding, asking = cast(torch.Tensor, model.get_input_embeddings().weight), classes * values
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2 and weight is not embedding:
                torch.nn.init.normal_(weight, 0.0, 0.7 / weight.shape[1] ** 0.5)
        kind, own, value = (0.1 * torch.randn(n, embedding.shape[1]) for n in (3, classes, values))
        embedding[:asking] = (kind[0] + own[:, None] + value).flatten(0, 1)
        embedding[asking : asking + classes] = kind[1] + own
        embedding[asking + classes :] += kind[2]
    return embedding


def learn(model: PreTrainedModel, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """A step of training, its gradients clipped to a norm of 1."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
