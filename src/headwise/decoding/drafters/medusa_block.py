"""Whisper-Medusa: Medusa's heads on one more decoder layer, for models of an encoder and a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.decoding.base import Proposer
from headwise.drafters import Drafter, DrafterCard, register
from headwise.knobs import Positive, Word


@register("medusa_block")
@dataclass(frozen=True)
class MedusaBlock(Drafter):
    """Guesses by the heads of a file that were trained for this model of an encoder and a decoder.

    file: that file. nodes: guesses of the tree that are verified together.
    """

    file: Word
    nodes: Positive = 12

    card = DrafterCard(
        title="Whisper in Medusa's Ear: Multi-head Efficient Decoding for Transformer-based ASR",
        paper="arXiv 2409.15869; the official code's medusa_block",
        systems=(142,),
        deviations="the block begins with random weights and not as the decoder's last layer, and sees the last 64 "
        "tokens; the tree is chosen by measured hits; the model is frozen, so that what is written is plain "
        "decoding's, where the official code may train its last layer too",
    )

    def start(self, model: Any) -> Proposer:
        from headwise.decoding.headed import Headed  # and with it transformers, which a list of drafters does without

        return Headed(model, "medusa_block", Path(self.file), self.nodes)
