"""Medusa: heads on the model's last state guess the next tokens, each by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.decoding.base import Proposer
from headwise.drafters import Drafter, DrafterCard, register
from headwise.knobs import Positive, Word


@register("medusa")
@dataclass(frozen=True)
class Medusa(Drafter):
    """Guesses by the heads of a file that `headwise train-drafter --kind medusa` has written for this model.

    file: that file. nodes: guesses of the tree that are verified together.
    """

    file: Word
    nodes: Positive = 12

    card = DrafterCard(
        title="Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
        paper="arXiv 2401.10774, section 2 (Medusa-1: the model is frozen); tree verification as in row 141's paper",
        systems=(135, 141, 142),
        deviations="tokens are drawn as ever, so that no typical acceptance is needed to sample; of row 141 it stands "
        "for the verification of trees path by path alone, as there is no linear attention here; of row 142's kinds it "
        "is the one without a block, on the decoder of a model with an encoder",
    )

    def start(self, model: Any) -> Proposer:
        from headwise.decoding.headed import Headed  # and with it transformers, which a list of drafters does without

        return Headed(model, "medusa", Path(self.file), self.nodes)
