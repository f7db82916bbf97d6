"""Contrastive decoding: against an amateur, which here is the model itself where it sees the last few tokens alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.decoders import Decoder, DecoderCard, register
from headwise.faithful.looks import Looks
from headwise.faithful.scores import contrasted, plausible
from headwise.knobs import Positive, PositiveShare, Weight
from headwise.seams.transformers.beside import read_session


@register("contrastive")
@dataclass(frozen=True)
class Contrastive(Decoder):
    """Weighs the model's log-probabilities against those of an amateur, among tokens that are plausible.

    beta: the weight. sees: the last tokens that the amateur sees. plausible: the share of the best token's probability
    below which no token is chosen.
    """

    beta: Weight = 0.5
    sees: Positive = 8
    plausible: PositiveShare = 0.1

    card = DecoderCard(
        title="Contrastive decoding",
        paper="Contrastive Decoding: Open-ended Text Generation as Optimization, arXiv 2210.15097, section 3; weighted "
        "as in arXiv 2309.09117, section 2",
        costs="one second look",
        deviations="the amateur is no smaller model but the model itself, whose newest token sees the last tokens "
        "alone; what these tokens themselves have seen stays as it is",
        systems=(197,),
    )
    needs = frozenset({"again"})
    neutral = "contrastive(beta=0.0, plausible=1e-9)"

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        logs = logits.log_softmax(-1)
        seen = torch.tensor(read_session(looks.cache).seen, device=logits.device)
        hidden = torch.arange(looks.ids.shape[1], device=logits.device) < seen[:, None] - self.sees
        amateur = looks.hidden(dict.fromkeys(range(len(looks.geometry.layers)), hidden)).log_softmax(-1)
        left = contrasted(logs, amateur, self.beta)
        return left.masked_fill(~plausible(logs, self.plausible), -torch.inf).log_softmax(-1)
