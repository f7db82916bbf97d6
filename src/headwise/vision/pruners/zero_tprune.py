"""Zero-TPrune (Wang et al. 2024): a page rank on the encoder's attention, and tokens that others stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import normalize

from headwise.knobs import PositiveShare, Share
from headwise.pruners import Pruner, PrunerCard, from_layer, left, register
from headwise.vision.seen import Seen

VARIANCE = 0.01, 0.7  # of a head's scores, as multiples of their mean; other heads are not heard
USED = -2  # the encoder's layer whose output the decoder is given


@register("zero_tprune")
@dataclass(frozen=True)
class ZeroTPrune(Pruner):
    """keep: the share of image tokens that enter the decoder. similar: the share of those that leave which leave
    because another is like them; the others are the least important. rounds: of the page rank."""

    keep: PositiveShare = 0.5
    similar: Share = 0.5
    rounds: Annotated[int, Ge(1), Le(100)] = 10

    card = PrunerCard(
        "Lets those image tokens into the decoder that a page rank on the encoder's attention finds important, and "
        "that no other stands for",
        "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers, "
        "CVPR 2024, arXiv 2305.17328, section 3",
        "tokens leave once, after the encoder, by the layer whose output is used, where the paper lets them leave "
        "between the layers of a ViT that classifies. The limits of a head's variance are the paper's 0.01 and 0.7, "
        "of scores with mean 1; where no head lies between, all are heard. No code by the authors was found",
        (89,),
        "leaving between the encoder's layers",
    )
    everything = "zero_tprune(keep=1.0)"

    def stay(self, seen: Seen) -> Tensor | None:
        count = len(seen.places)
        leave = count - left(self.keep, count)
        if seen.layer or not leave:
            return None
        scores = self.importance(seen)
        alike = unneeded(seen.picture.keys[USED][1:][seen.places], scores, min(round(self.similar * leave), count // 2))
        scores[alike] = -1.0  # below all others
        stay = torch.ones(count, dtype=torch.bool)
        stay[scores.argsort(stable=True)[:leave]] = False
        return stay

    def importance(self, seen: Seen) -> Tensor:
        """Of each image token: [images]."""
        return ranks(seen.picture.attention[USED], self.rounds)[1:][seen.places]

    def counts(self, images: int, layers: int) -> list[int]:
        return from_layer(0, left(self.keep, images), images, layers)


def ranks(weights: Tensor, rounds: int) -> Tensor:
    """The weighted page rank of tokens by attention weights [H, n, n]: what flows to each [n] after `rounds` steps, the
    root mean square of heads whose scores are neither flat nor of few tokens alone. The mean token has about 1."""
    scores = torch.ones(weights.shape[:2])
    for _ in range(rounds):
        scores = (scores[:, None] @ weights)[:, 0]
    variance = scores.var(-1, unbiased=False)
    heard = (variance >= VARIANCE[0]) & (variance <= VARIANCE[1])
    return (scores[heard] if heard.any() else scores).square().mean(0).sqrt()


def unneeded(keys: Tensor, scores: Tensor, count: int) -> Tensor:
    """The places of `count` tokens of the less important half that are most like one of the more important half, by the
    cosine of their keys [n, width]."""
    order = scores.argsort(stable=True)
    low, high = order[: len(order) // 2], order[len(order) // 2 :]
    directions = normalize(keys.float(), dim=-1)
    like = (directions[low] @ directions[high].T).amax(-1)
    return low[like.argsort(descending=True, stable=True)[:count]]
