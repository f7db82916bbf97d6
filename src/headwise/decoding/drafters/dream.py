"""DREAM: a small drafter that attends to the model's own states of the text, trained on the sharpest early layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwise.decoding.base import Proposer
from headwise.drafters import Drafter, DrafterCard, register
from headwise.knobs import Positive, Word


@register("dream")
@dataclass(frozen=True)
class Dream(Drafter):
    """Guesses by the heads of a file that `headwise train-drafter --kind dream` has written for this model.

    file: that file. nodes: guesses of the tree that are verified together.
    """

    file: Word
    nodes: Positive = 12

    card = DrafterCard(
        title="DREAM: Drafting with Refined Target Features and Entropy-Adaptive Cross-Attention Fusion for Multimodal "
        "Speculative Decoding",
        paper="arXiv 2505.19201, section 3",
        systems=(128,),
        deviations="for texts: no image tokens, so that none are pruned; the drafter sees the last 64 tokens alone, as "
        "states of a longer prompt are not kept; every guess of the chain is trained on the drafter's own states, "
        "where the official code trains the first one and adds noise; distilled words count as cross-entropy, where it "
        "takes the mean over the vocabulary of their divergence; its tree is chosen by measured hits, where the "
        "official one grows by the drafter's own confidence; feed-forward layers are twice as wide as the model. After "
        "a short training on texts neither its cross-attention nor the choice of a layer shows (docs/decode.md)",
    )

    def start(self, model: Any) -> Proposer:
        from headwise.decoding.headed import Headed  # and with it transformers, which a list of drafters does without

        return Headed(model, "dream", Path(self.file), self.nodes)
