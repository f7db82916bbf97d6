"""Fewer heads of keys beside fewer heads of values, and queries through a wider hidden layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.layers.attend import Pairs
from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer
from headwise.theory.decoder import Decoder, seeded
from headwise.theory.writer import WIDTH, Sentence, held_loss, taught, writer

DIMS, LAYERS, WIDER = Dims(WIDTH, 8, 8), 2, 96  # WIDER: 1.5 times the width, the hidden layer of queries
SIDES = {"keys": "diff_qkv(1, 8)", "values": "diff_qkv(8, 1)", "both": "gqa(1)"}
SIGMA = Dims(256, 32, 8)  # the heads of Sigma


@register("diff_qkv")
@dataclass(frozen=True, kw_only=True)
class DiffQkv(Experiment):
    """Language models of the novel's bytes with eight heads of keys and of values, or with one of either.

    steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="DiffQKV",
        statement="A token's cache is its heads of keys and of values, each by their width; one head of keys in the "
        "place of eight raises the loss less than one head of values; queries through a hidden layer of 1.5 times the "
        "width lower it, and leave the cache as it is",
        paper="Sigma: Differential Rescaling of Query, Key and Value for Efficient Language Models, arXiv 2501.13629, "
        "section 2",
        setting="1.5 and 7 billion parameters, 32 heads of queries, 4 of keys and 16 of values",
        seconds=300,
        systems=(5,),
        differs="two layers of 64 channels and 8 heads; what the hidden layer of queries is is a reading of the paper, "
        "and its activation a SiLU",
        leaves_out="keys of fewer channels, and loading the values of the highest weights alone",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("cache of 4 heads of keys and 16 of values over that of 16 of both, from 0.625", "cache", "cache_eight",
             "8 heads of both", below=1e-9),
        Part("change of the cache by the hidden layer of queries, bytes a token", "same", "same_keys",
             "twice as many heads of keys", below=0.5),
        Part("held-out loss with one head of keys more than with one head of values, nats", "cost", "cost_both",
             "one head of both", below=0.0),
        Part("held-out loss by the hidden layer of queries, nats", "augmented", "augmented_wide",
             "as many parameters more in the feed-forward layer", below=0.0),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("cache", "same")

    steps: Steps = 600

    def draw(self, seed: int) -> dict[str, Any]:
        """Losses and bytes of models that differ in their projections alone."""
        lost = {name: self.lost(f"{text} | rope", seed) for name, text in SIDES.items()}
        lost["augmented"] = self.lost(f"diff_qkv(2, 8, augmented={WIDER}) | rope", seed)
        lost["plain"] = self.lost("diff_qkv(2, 8) | rope", seed)
        lost["wide"] = self.lost("diff_qkv(2, 8) | rope", seed, wide=True)
        sixteen = cached("gqa(16)", SIGMA)
        few = cached("diff_qkv(2, 8)", DIMS)
        return {"measures": {
            "cache": abs(cached("diff_qkv(4, 16)", SIGMA) / sixteen - 0.625),
            "cache_eight": abs(cached("gqa(8)", SIGMA) / sixteen - 0.625),
            "same": abs(cached(f"diff_qkv(2, 8, augmented={WIDER})", DIMS) - few),
            "same_keys": cached("diff_qkv(4, 8)", DIMS) - few,
            "cost": lost["keys"] - lost["values"], "cost_both": lost["both"] - lost["values"],
            "augmented": lost["augmented"] - lost["plain"], "augmented_wide": lost["wide"] - lost["plain"],
            **{f"loss_{name}": one for name, one in lost.items()},
        }}  # fmt: skip

    def lost(self, text: str, seed: int, wide: bool = False) -> float:
        """The held-out loss of a trained model of such layers. wide: with more channels in its feed-forward layers, as
        many parameters as the hidden layer of queries has."""
        model = writer(lambda: Sentence(text, DIMS), LAYERS, seed)
        if wide:
            seeded(seed, lambda: widen(model, WIDER))
        taught(model, self.name, seed, self.steps)
        return held_loss(model)


def widen(model: Decoder, channels: int) -> Decoder:
    """The model that has in each feed-forward layer so many parameters more as a hidden layer of queries adds."""
    more = WIDTH * channels + channels * WIDTH - WIDTH**2
    hidden = 2 * WIDTH + -(-more // (2 * WIDTH))
    for place in range(LAYERS):
        model.wide[place] = nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, WIDTH))
    return model


@torch.no_grad()
def cached(text: str, dims: Dims) -> int:
    """Bytes that a layer keeps of the keys and values of a token."""
    pairs = AttentionLayer(text, dims)(torch.zeros(1, 1, dims.width))[1].mix
    assert isinstance(pairs, Pairs) and pairs.values is not None
    return pairs.keys.nbytes + pairs.values.nbytes
