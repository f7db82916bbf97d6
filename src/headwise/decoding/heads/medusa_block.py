"""Whisper-Medusa's shared block: a decoder layer more, which reads text and encoder, below Medusa's heads."""

from __future__ import annotations

from typing import Any

import torch

from headwise.decoding.heads.base import heads
from headwise.decoding.heads.medusa import ByItself
from headwise.errors import UnsupportedModel


@heads("medusa_block")
class MedusaBlockHeads(ByItself):
    """One decoder layer for all guesses, over the model's states of the last tokens and over what its encoder gave;
    heads on it, and the model's own output embedding (arXiv 2409.15869)."""

    sees = 64

    def __init__(self, model: Any, depth: int) -> None:
        if not model.config.is_encoder_decoder:
            raise UnsupportedModel(
                f"'medusa_block' heads read what an encoder gave, and {type(model).__name__} has none; train 'medusa' "
                "heads for it"
            )
        output = model.get_output_embeddings().weight.detach().float()
        width, parts = output.shape[1], model.config.get_text_config().num_attention_heads
        super().__init__(width, depth)
        self.register_buffer("output", output, persistent=False)  # the model's, which is frozen: not in the file
        self.output: torch.Tensor
        self.block = torch.nn.TransformerDecoderLayer(
            width, parts, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def begin(
        self,
        states: torch.Tensor,
        following: torch.Tensor,
        places: torch.Tensor,
        encoded: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert encoded is not None, "the model has an encoder"
        at = torch.arange(len(states), device=states.device)
        back = at[:, None] - at
        read: torch.Tensor = self.block(states[None], encoded[None], tgt_mask=(back < 0) | (back >= self.sees))
        return read[0, places]

    def words(self, place: int, out: torch.Tensor) -> torch.Tensor:
        return out @ self.output.T
