"""CausalMM: against what the model would say if neither its encoder nor its decoder chose where to look."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch

from headwise.decoders import Decoder, DecoderCard, register
from headwise.faithful.looks import Looks
from headwise.faithful.scores import plausible
from headwise.faithful.sights import Sight
from headwise.knobs import PositiveShare, Weight
from headwise.seams.transformers.encoder import altered, encoder_layers, image_features


@register("causalmm")
@dataclass(frozen=True)
class CausalMm(Decoder):
    """Weighs the model's logits against two others: with the attention of its image encoder made even, and with that of
    its decoder made even within the image.

    gamma: the weight of each, 0.5 in the paper. plausible: the share of the best token's probability below which no
    token is chosen, 0.1 in the paper.
    """

    gamma: Weight = 0.5
    plausible: PositiveShare = 0.1

    card = DecoderCard(
        title="Decoding against counterfactual attention",
        paper="Mitigating Modality Prior-Induced Hallucinations in Multimodal Large Language Models via Deciphering "
        "Attention Causality, ICLR 2025, arXiv 2410.04780, section 3",
        costs="two passes over the newest token, and twice the prompt, over caches of their own; the image encoder "
        "twice more",
        deviations="even attention alone, not random, reversed or shuffled; in the decoder within the image, whose "
        "weight stays what it is, where the released code evens whole maps. At gamma 0 implausible tokens are left in, "
        "so that sampling is the model's own",
        systems=(136,),
    )
    needs = frozenset({"image"})
    neutral = "causalmm(gamma=0.0)"

    def prepare(self, looks: Looks) -> None:
        encoder_layers(looks.model)

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        logs = logits.log_softmax(-1)
        if self.gamma == 0:
            return logs
        encoder = looks.sight("encoder", lambda: self._sight(looks, "", True)).log_softmax(-1)
        decoder = looks.sight("decoder", lambda: self._sight(looks, "even(1.0)", False)).log_softmax(-1)
        out = (1 + 2 * self.gamma) * logs - self.gamma * (encoder + decoder)
        return out.masked_fill(~plausible(logs, self.plausible), -torch.inf).log_softmax(-1)

    def _sight(self, looks: Looks, recipe: str, blind: bool) -> Sight:
        rows, pixels = looks.images()
        with altered(looks.model, _even) if blind else nullcontext():
            features = image_features(looks.model, pixels)
        return Sight(looks.model, recipe, rows, list(features))


def _even(weights: torch.Tensor) -> torch.Tensor:
    return torch.full_like(weights, 1 / weights.shape[-1])
