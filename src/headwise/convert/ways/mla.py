"""TransMLA: keys and values of all heads as one latent, of which little is lost when it is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from headwise.conversions import Conversion, ConversionCard, register
from headwise.convert.latent import check_rank, heads_of, length_of, principal
from headwise.errors import RecipeError
from headwise.knobs import NonNegative, Positive
from headwise.seams.transformers.looked import Looked
from headwise.seams.transformers.weights import Decoder, Latent, Layer, as_deepseek


@register("mla")
@dataclass(frozen=True)
class Mla(Conversion):
    """Key heads are turned into one another, frequency by frequency, until the first holds most of them; positions
    turn that one alone, and all the rest is cut to a latent together with the values.

    rank: channels of the latent; 0 is all, nothing being cut. rope: channels that positions go on turning, a multiple
    of a head's; 0 is all. fold: neighbouring frequencies that are turned into one another as if they were one. rotate:
    whether key heads are turned into one another at all. balance: whether keys are as large as values when the latent
    is chosen. The last two are on but for ablations.
    """

    rank: NonNegative = 0
    rope: NonNegative = 0
    fold: Positive = 1
    rotate: bool = True
    balance: bool = True
    card: ClassVar[ConversionCard] = ConversionCard(
        "Grouped-query attention as multi-head latent attention",
        "TransMLA, 2502.07864, section 4",
        "with rank=0, rope=0 and fold=1, of any model that is taken",
        "transformers' DeepSeek-V3 without experts",
        systems=(269,),
        deviations="second moments of keys and values are computed from those of the layer's input, and those after "
        "RoPE is left out are taken to be the same; DeepSeek's norm of the latent is held constant by one more "
        "channel, where the official code comes with a class of its own that leaves it out; queries are not cut",
        leaves_out="the collapse of a head to fewer turned channels, and the search for the best fold",
    )

    @classmethod
    def exact(cls, source: Decoder) -> Mla:
        return cls()

    def check(self, source: Decoder) -> None:
        all_keys = source.kv_heads * source.head_dim
        if self.rope > all_keys or self.rope % source.head_dim:
            raise RecipeError(
                f"mla: rope={self.rope} is no multiple of a head's {source.head_dim} channels up to {all_keys}; give "
                "such a one, or 0 for all of them"
            )
        if (source.head_dim // 2) % self.fold:
            raise RecipeError(
                f"mla: {source.head_dim // 2} frequencies cannot be folded by {self.fold}; give a fold that divides "
                "them"
            )
        check_rank("mla", self.rank, 2 * all_keys - self._rope(source), "the keys that are not turned and the values")

    def build(self, source: Decoder, looked: Looked) -> Any:
        made = [self._latent(source, one, moment) for one, moment in zip(source.layers, looked.moments, strict=True)]
        return as_deepseek(source, made, source.frequencies.repeat(self._rope(source) // source.head_dim))

    def cache_numbers(self, source: Decoder) -> int:
        every = 2 * source.kv_heads * source.head_dim
        return len(source.layers) * (1 + (self.rank + self._rope(source) if self.rank else every))

    def _rope(self, source: Decoder) -> int:
        return self.rope or source.kv_heads * source.head_dim

    def _latent(self, source: Decoder, layer: Layer, moment: Tensor) -> Latent:
        """A layer, its key heads turned and its latent cut."""
        groups, dim = source.kv_heads, source.head_dim
        wk, wv, q = layer.k.double(), layer.v.double(), heads_of(layer.q, source.heads)
        turn = rotation(wk @ moment @ wk.T, groups, self.fold) if self.rotate else torch.eye(len(wk)).double()
        order = torch.arange(len(wk)).view(groups, 2, dim // 2).transpose(0, 1)
        kept = order[:, : self._rope(source) // dim].flatten()  # the first halves of heads, then the second ones
        gone = order[:, self._rope(source) // dim :].flatten()
        turned = turn.T @ wk
        own = turn.unflatten(0, (groups, dim)).repeat_interleave(source.heads // groups, 0)  # [heads, dim, all keys]
        q_rope = own[:, :, kept].transpose(1, 2) @ q
        ratio = _size(turned[gone], moment) / _size(wv, moment) if self.balance and len(gone) else 1.0
        down = torch.cat((turned[gone] / ratio, wv))
        basis = principal(down @ moment @ down.T, self.rank or len(down))
        values = torch.eye(len(wv)).double().unflatten(0, (groups, dim)).repeat_interleave(source.heads // groups, 0)
        up = torch.cat((own[:, :, gone] * ratio @ basis[: len(gone)], values @ basis[len(gone) :]), 1)
        down = basis.T @ down
        parts = (torch.cat((q, q_rope), 1), torch.cat((down, turned[kept])), up)
        q, kv_a, kv_b = (one.float() for one in parts)
        return Latent(q, kv_a, kv_b, len(kept), length_of(down, moment))


def _size(down: Tensor, moment: Tensor) -> float:
    """The mean root mean square of the channels W x."""
    return float(torch.einsum("cw,wv,cv->c", down, moment, down).clamp_min(0).sqrt().mean())


def rotation(moment: Tensor, heads: int, fold: int) -> Tensor:
    """Orthogonal [keys, keys], whose columns are the new channels: within each `fold` neighbouring frequencies the
    channels of all heads are turned into their principal directions, real and imaginary halves alike, so that RoPE
    turns what comes out as it turned what went in (exactly where fold is 1). moment: of the keys [keys, keys]."""
    half = len(moment) // heads // 2
    places = torch.arange(len(moment)).view(heads, 2, half // fold, fold)
    turn = torch.zeros_like(moment)
    for number in range(half // fold):
        real, imaginary = (places[:, side, number].flatten() for side in (0, 1))
        both = moment[real][:, real] + moment[imaginary][:, imaginary]
        found = principal(both, len(both))
        for own in (real, imaginary):
            turn[own[:, None], own[None]] = found
    return turn
