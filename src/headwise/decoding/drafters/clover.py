"""Clover-2: a small recurrent state reads every guess back before the next one is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.decoding.base import Proposer
from headwise.drafters import Drafter, DrafterCard, register
from headwise.knobs import Positive, Word


@register("clover")
@dataclass(frozen=True)
class Clover(Drafter):
    """Guesses by the heads of a file that `headwise train-drafter --kind clover` has written for this model.

    file: that file. nodes: guesses of the tree that are verified together.
    """

    file: Word
    nodes: Positive = 12

    card = DrafterCard(
        title="Clover-2: Accurate Inference for Regressive Lightweight Speculative Decoding",
        paper="arXiv 2408.00264, section 3",
        systems=(158,),
        deviations="the augmenting block is the MLP of a decoder layer without its attention, as the states of a "
        "prompt that was read before the drafter came are not kept; the model's state is taken after its last norm; "
        "every place counts in the loss, not only those that earlier guesses would have reached",
    )

    def start(self, model: Any) -> Proposer:
        from headwise.decoding.headed import Headed  # and with it transformers, which a list of drafters does without

        return Headed(model, "clover", Path(self.file), self.nodes)
