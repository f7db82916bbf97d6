"""VTC-CLS (Wang et al. 2024): the image encoder's [CLS] token says which image tokens matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.choose import choose_mask
from headwise.errors import HeadwiseError
from headwise.knobs import NonNegative, PositiveShare
from headwise.pruners import Pruner, PrunerCard, from_layer, left, register
from headwise.vision.seen import Seen


@register("vtc_cls")
@dataclass(frozen=True)
class VtcCls(Pruner):
    """keep: the share of image tokens that enter the decoder. start: the encoder's layer from which on the looks of
    [CLS] are summed, up to the last but one."""

    keep: PositiveShare = 0.25
    start: NonNegative = 0

    card = PrunerCard(
        "Lets those image tokens into the decoder that the encoder's [CLS] token attends to",
        "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs, arXiv 2412.05819, section 3",
        "the released code gives a start layer for each data set and number of tokens; here it is a knob, 0 by "
        "default. Tokens keep their true positions, where the released code counts anew",
        (115,),
    )
    everything = "vtc_cls(keep=1.0)"

    def stay(self, seen: Seen) -> torch.Tensor | None:
        count = len(seen.places)
        if seen.layer or left(self.keep, count) == count:
            return None
        looks = seen.picture.looks
        if self.start > len(looks) - 2:
            raise HeadwiseError(f"vtc_cls: start={self.start}: the encoder's layers to sum end at {len(looks) - 2}")
        scores = looks[self.start : -1].sum(0)[seen.places]
        return choose_mask(scores[None], left(self.keep, count), torch.zeros(1, count, dtype=torch.bool))[0]

    def counts(self, images: int, layers: int) -> list[int]:
        return from_layer(0, left(self.keep, images), images, layers)
