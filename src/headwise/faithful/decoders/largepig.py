"""LargePiG: a mixture of what the model says and the tokens of the passage that it looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.decoders import Decoder, DecoderCard, register
from headwise.faithful.looks import Looks
from headwise.faithful.measured import special_ids
from headwise.faithful.scores import divergence
from headwise.knobs import Weight

MOST = 0.5  # of the mixture that may be pointed


@register("largepig")
@dataclass(frozen=True)
class LargePig(Decoder):
    """Points at tokens of the marked context by the last layer's attention, as much as the upper layers' early exits
    differ from the last.

    scale: the share of pointing is this times the largest divergence, in nats, and at most a half.
    """

    scale: Weight = 1.0

    card = DecoderCard(
        title="The model as a pointer-generator",
        paper="LargePiG: Your Large Language Model is Secretly a Pointer Generator, arXiv 2410.11366, section 4",
        costs="no pass: the last layer's attention to the context, and the output embedding once for each exit",
        deviations="early states go through the model's final norm; exits of all layers of the upper half are asked; "
        "special tokens are those that the model's configuration names. Made from the paper's text, as no official "
        "code was found",
        systems=(70,),
    )
    needs = frozenset({"context", "attention", "exits"})
    neutral = "largepig(scale=0.0)"

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        logs, layers = logits.log_softmax(-1), len(looks.geometry.layers)
        exits = looks.exits(range(max(1, layers // 2), layers))
        copied = (self.scale * divergence(logs[:, None], exits).amax(1)).clamp(max=MOST)[:, None]
        pointed = self.pointed(looks, logits.shape[1])
        copied = copied * (pointed.sum(-1, keepdim=True) > 0)  # nothing of the context is held, or attended to
        return (copied * pointed + (1 - copied) * logs.exp()).log()

    def pointed(self, looks: Looks, vocabulary: int) -> torch.Tensor:
        """The distribution [b, vocab] over the context's tokens by attention; nothing where it gets none."""
        attention = looks.attention(looks.geometry.attending[-1]).mean(1)
        special = torch.tensor(special_ids(looks.model), device=attention.device)
        source = looks.context & ~torch.isin(looks.tokens, special)
        attention = attention * source
        total = attention.sum(-1, keepdim=True)
        shares = torch.where(total > 0, attention / total, 0.0)
        return shares.new_zeros(len(shares), vocabulary).scatter_add(1, looks.tokens, shares)
