"""Context-aware decoding: against what the model would say without the passage."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.decoders import Decoder, DecoderCard, register
from headwise.faithful.looks import Looks
from headwise.faithful.scores import contrasted
from headwise.knobs import Weight


@register("cad")
@dataclass(frozen=True)
class Cad(Decoder):
    """Weighs the model's logits against those of the prompt without its marked context.

    alpha: the weight.
    """

    alpha: Weight = 0.5

    card = DecoderCard(
        title="Context-aware decoding",
        paper="Trusting Your Evidence: Hallucinate Less with Context-aware Decoding, arXiv 2305.14739, section 2",
        costs="one pass over the newest token, and once the prompt without the context, over a dense cache of its own: "
        "its keys and values have seen no context, so that none of the first look's can serve",
        deviations="the context is cut out of the prompt as it stands; the paper writes a prompt of its own",
    )
    needs = frozenset({"context"})
    neutral = "cad(alpha=0.0)"

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        return contrasted(logits.log_softmax(-1), looks.without(looks.context).log_softmax(-1), self.alpha)
