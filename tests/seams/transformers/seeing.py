"""A small random Llava and random pictures: what tests of models that read images run."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN, PLACES = 128, 16  # above the ids of `tests.engine.small.tokens`; image tokens of a picture


def seeing(seed: int = 0) -> LlavaForConditionalGeneration:
    """A model of the size of `tests.engine.small.build` beside a small image encoder."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=129, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, vision_feature_layer=-2, eos_token_id=None,
        vision_feature_select_strategy="default", tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)
    model.generation_config.eos_token_id = None
    return model


def pixels(rows: int = 1, seed: int = 2) -> torch.Tensor:
    """Random pictures [rows, 3, 16, 16]."""
    return torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
