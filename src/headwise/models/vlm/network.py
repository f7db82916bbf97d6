"""The small vision-language model: transformers' own Llava, of a CLIP encoder, a projector and a Llama decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from headwise.models.vlm.asked import BOS, EOS, IDS, IMAGE, PAD, WORDS, tokenizer
from headwise.models.vlm.scenes import PATCH, SIDE


def untrained(
    seed: int = 0, width: int = 128, layers: int = 6, vision_layers: int = 4
) -> LlavaForConditionalGeneration:
    """The network with random weights: `layers` decoder layers and `vision_layers` of the encoder, both of a width."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 2 * width}
    vision = CLIPVisionConfig(num_hidden_layers=vision_layers, image_size=SIDE, patch_size=PATCH, **sizes)
    text = LlamaConfig(
        vocab_size=len(WORDS),
        num_hidden_layers=layers,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=IDS[BOS],
        eos_token_id=IDS[EOS],
        pad_token_id=IDS[PAD],
        tie_word_embeddings=False,
        **sizes,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IDS[IMAGE],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the folder that `from_pretrained` loads, with its tokenizer."""
    model.save_pretrained(folder)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), bos_token=BOS, eos_token=EOS, pad_token=PAD, additional_special_tokens=[IMAGE]
    )
    words.save_pretrained(folder)


def load(folder: Path) -> LlavaForConditionalGeneration:
    """The trained network, ready to be asked."""
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration.from_pretrained(folder)
    return model.eval()
