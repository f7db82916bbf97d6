"""DAMRO: against what the model would say of the image tokens that its encoder attends to whatever they show."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.choose import choose_mask
from headwise.decoders import Decoder, DecoderCard, register
from headwise.errors import HeadwiseError
from headwise.faithful.looks import Looks
from headwise.faithful.scores import contrasted, plausible
from headwise.faithful.sights import Sight
from headwise.knobs import Positive, PositiveShare, Weight
from headwise.seams.transformers.encoder import encoder_attention, encoder_layers, image_features


@register("damro")
@dataclass(frozen=True)
class Damro(Decoder):
    """Weighs the model's logits against those of a prompt in which the image is its outlier tokens alone.

    alpha: the weight, 0.5 to 2 in the paper. tokens: how many image tokens are outliers, those that the encoder's [CLS]
    token attends to most in the layer whose output the decoder reads. plausible: the share of the best token's
    probability below which no token is chosen.
    """

    alpha: Weight = 0.5
    tokens: Positive = 10
    plausible: PositiveShare = 0.1

    card = DecoderCard(
        title="Decoding against the image's outlier tokens",
        paper="DAMRO: Dive into the Attention Mechanism of LVLM to Reduce Object Hallucination, EMNLP 2024, arXiv "
        "2410.04514, section 4",
        costs="one pass over the newest token, and once the prompt with few image tokens, over a cache of its own; the "
        "image encoder once more",
        deviations="at alpha 0 implausible tokens are left in, so that sampling is the model's own; tokens behind the "
        "image follow it at once in the second look, as in the released code",
        systems=(80,),
    )
    needs = frozenset({"image"})
    neutral = "damro(alpha=0.0)"

    def prepare(self, looks: Looks) -> None:
        encoder_layers(looks.model)

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        logs = logits.log_softmax(-1)
        if self.alpha == 0:
            return logs
        out = contrasted(logs, looks.sight("outliers", lambda: self._sight(looks)).log_softmax(-1), self.alpha)
        return out.masked_fill(~plausible(logs, self.plausible), -torch.inf).log_softmax(-1)

    def _sight(self, looks: Looks) -> Sight:
        rows, pixels = looks.images()
        outliers = list(self.outliers(looks, pixels))
        return Sight(looks.model, "", rows, list(image_features(looks.model, pixels)), outliers)

    def outliers(self, looks: Looks, pixels: torch.Tensor) -> torch.Tensor:
        """Which image tokens [b, images] of these pictures are outliers."""
        layer = looks.model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise HeadwiseError(f"damro: the decoder reads the encoder's layers {layer}; it looks at one, use another")
        attention = encoder_attention(looks.model, pixels)
        scores = attention[layer if layer < 0 else layer - 1].mean(1)[:, 0, 1:]
        return choose_mask(scores, min(self.tokens, scores.shape[1]), torch.zeros_like(scores, dtype=torch.bool))
