"""What decoders are compared with: the same with its own idea replaced by chance."""

from __future__ import annotations

from dataclasses import dataclass, fields
from random import Random
from typing import Any

import torch

from headwise.decoders import Decoder
from headwise.faithful.decoders.cad import Cad
from headwise.faithful.decoders.dagcd import Dagcd
from headwise.faithful.decoders.decore import Decore
from headwise.faithful.decoders.largepig import LargePig
from headwise.faithful.decoders.layercake import LayerCake
from headwise.faithful.looks import Looks
from headwise.faithful.measured import retrieval_heads
from headwise.seams.transformers.beside import read_session


@dataclass(frozen=True)
class RandomHeads(Decore):
    """DeCoRe that masks as many heads drawn from those that are no retrieval heads."""

    name = "decore, random heads"

    def _masked(self, looks: Looks) -> tuple[tuple[int, int], ...]:
        best = set(retrieval_heads(looks.model, self.heads))
        all_heads = [(n, head) for n, one in enumerate(looks.geometry.layers) for head in range(one.query_heads)]
        return tuple(Random("decore").sample([one for one in all_heads if one not in best], self.heads))


@dataclass(frozen=True)
class RandomSpan(Cad):
    """Context-aware decoding without as many tokens of the prompt as half the context has, from where chance says."""

    name = "cad, random span"

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        cut = torch.zeros_like(looks.context)
        for row, context in enumerate(looks.context):
            places = context.nonzero()[:, 0]
            half = max(1, len(places) // 2)
            first = int(places[0]) + Random(f"cad/{int(looks.tokens[row, places].sum())}").randrange(half)
            cut[row, first : first + half] = True
        logs, without = logits.log_softmax(-1), looks.without(cut).log_softmax(-1)
        return ((1 + self.alpha) * logs - self.alpha * without).log_softmax(-1)


@dataclass(frozen=True)
class AnyUsed(Dagcd):
    """DAGCD whose distribution is the same for all tokens of the context that the model ranks well."""

    name = "dagcd, any token of the context"

    def used(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        found = torch.zeros_like(logits)
        for row, context in enumerate(looks.context):
            different = looks.tokens[row][context].unique()
            ranks = (logits[row][None] > logits[row][different][:, None]).sum(1)
            if len(ranked := different[ranks < self.rank]):
                found[row, ranked] = 1 / len(ranked)
        return found


@dataclass(frozen=True)
class EvenlyPointed(LargePig):
    """LargePiG that points at all tokens of the context alike."""

    name = "largepig, all tokens alike"

    def pointed(self, looks: Looks, vocabulary: int) -> torch.Tensor:
        shares = looks.context / looks.context.sum(-1, keepdim=True)
        return shares.new_zeros(len(shares), vocabulary).scatter_add(1, looks.tokens, shares)


@dataclass(frozen=True)
class RandomTokens(LayerCake):
    """LayerCake that suppresses as many random tokens in the same layers."""

    name = "layercake, random tokens"

    def suppressed(self, looks: Looks) -> dict[int, torch.Tensor]:
        return {layer: _shuffled(places, looks) for layer, places in super().suppressed(looks).items()}


def _shuffled(places: torch.Tensor, looks: Looks) -> torch.Tensor:
    """As many other places of each row of bool `places [b, n]`."""
    out = torch.zeros_like(places)
    for row, own in enumerate(places):
        length = read_session(looks.cache).seen[row]
        drawn = Random(f"layercake/{row}/{length}").sample(range(1, length), min(int(own.sum()), length - 1))
        out[row, drawn] = True
    return out


CONTROLS: dict[type[Decoder], type[Any]] = {
    Decore: RandomHeads,
    Cad: RandomSpan,
    Dagcd: AnyUsed,
    LargePig: EvenlyPointed,
    LayerCake: RandomTokens,
}


def control_of(decoder: Decoder) -> Decoder | None:
    """The decoder with its own idea replaced by chance, its knobs kept; None where there is none."""
    kind = CONTROLS.get(type(decoder))
    if kind is None:
        return None
    made: Decoder = kind(**{one.name: getattr(decoder, one.name) for one in fields(kind)})
    return made
