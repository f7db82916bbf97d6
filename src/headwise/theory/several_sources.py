"""A decoder that reads several sources: one after the other, side by side, as one, or by a second attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.theory.fitting import adam, drawn, generator, share_right

KEYS, VALUES, WIDTH, HEADS = 8, 4, 32, 2  # of a source: keys, each once, and values; channels; heads
ROWS, TESTED, RATE = 64, 1024, 1e-2
WAYS = ("serial", "parallel", "flat", "hierarchical")
Sources = tuple[Tensor, ...]  # each [n, KEYS, WIDTH]


@dataclass
class Decoder:
    """One layer of a decoder. weights: query, key, value and out, for each source and for the second attention."""

    way: str
    weights: Tensor
    words: Tensor
    wide: Tensor
    narrow: Tensor
    out: Tensor

    @classmethod
    def new(cls, way: str, chance: torch.Generator, width: int = 2 * WIDTH) -> Decoder:
        weights, words = drawn(chance, 3, 4, WIDTH, WIDTH), drawn(chance, KEYS * (1 + 2 * VALUES), WIDTH)
        return cls(way, weights, words, drawn(chance, WIDTH, width), drawn(chance, width, WIDTH),
                   drawn(chance, WIDTH, VALUES * VALUES))  # fmt: skip

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What is trained."""
        return (self.weights, self.words, self.wide, self.narrow, self.out)

    def __call__(self, asked: Tensor, values: Tensor, kept: tuple[int, ...] = (0, 1)) -> Tensor:
        """Logits of the answer to asked keys [n], of sources with values [n, 2, KEYS] of which `kept` are read."""
        words = self.words * WIDTH**0.5
        sources = tuple(
            words[KEYS + (source * VALUES + values[:, source]) * KEYS + torch.arange(KEYS)] for source in kept
        )
        x = self.read(words[asked][:, None], sources)[:, 0]
        x = x + layer_norm(x, (WIDTH,)).matmul(self.wide).relu() @ self.narrow
        logits: Tensor = layer_norm(x, (WIDTH,)) @ self.out
        return logits

    def read(self, x: Tensor, sources: Sources) -> Tensor:
        """States x [n, queries, WIDTH] and what they read of the sources, added."""
        if self.way == "serial":
            for own, source in zip(self.weights, sources, strict=False):
                x = x + attention(normed(x), source, own)
            return x
        if self.way == "flat":
            return x + attention(normed(x), torch.cat(sources, dim=1), self.weights[0])
        read = [attention(normed(x), source, own) for own, source in zip(self.weights, sources, strict=False)]
        if self.way == "parallel":
            return x + torch.stack(read).sum(0)
        contexts = torch.stack(read, dim=2).flatten(0, 1)  # a query's contexts, one of each source
        return x + attention(normed(x).flatten(0, 1)[:, None], contexts, self.weights[2]).view_as(x)


@register("several_sources")
@dataclass(frozen=True, kw_only=True)
class SeveralSources(Experiment):
    """Two sources that give each key a value; the answer to a key is the pair of its values.

    steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Attention to several sources",
        statement="With one source the serial, parallel and flat ways are standard attention to an encoder; where an "
        "answer needs two sources each of the four ways answers 20 points more than what reads the better one alone",
        paper="Input Combination Strategies for Multi-Source Transformer Decoder, arXiv 1811.04716, section 3, and its "
        "code",
        setting="translation with images and from several languages, decoders of 6 layers",
        seconds=10,
        systems=(196,),
        differs="one layer without dropout over embedded sources; the norm has no scale of its own",
        leaves_out="translation, and encoders that are trained along",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("one source read serially, in parallel or flat beside standard attention, largest difference", "one",
             "one_hierarchical", "the hierarchical way, whose second attention projects again", below=1e-6),
        *(Part(f"right answers more than of the better source alone, {way}, share", way, "wider",
               "the better source alone, read by a feed-forward layer four times as wide", above=0.2) for way in WAYS),
    )  # fmt: skip

    steps: Steps = 200

    def draw(self, seed: int) -> dict[str, Any]:
        """Differences with one source, and right answers with two."""
        right = {way: self.trained(way, seed) for way in WAYS}
        alone = max(self.trained("serial", seed, kept=(one,)) for one in (0, 1))
        wider = max(self.trained("serial", seed, kept=(one,), width=8 * WIDTH) for one in (0, 1))
        return {"measures": {
            **{way: share - alone for way, share in right.items()}, "wider": wider - alone,
            "one": max(one_source(way, seed) for way in WAYS[:3]), "one_hierarchical": one_source("hierarchical", seed),
            "right_alone": alone,
        }}  # fmt: skip

    def trained(self, way: str, seed: int, kept: tuple[int, ...] = (0, 1), width: int = 2 * WIDTH) -> float:
        """Right answers on held questions."""
        chance, held = generator(self.name, seed), generator(f"{self.name}/held", seed)
        model = Decoder.new(way, chance, width)

        def loss() -> Tensor:
            asked, values, answer = questions(ROWS, chance)
            return cross_entropy(model(asked, values, kept), answer)

        adam(model.parameters, loss, self.steps, RATE)
        asked, values, answer = questions(TESTED, held)
        with torch.no_grad():
            return share_right(model(asked, values, kept), answer)


def normed(x: Tensor) -> Tensor:
    """Of mean 0 and variance 1."""
    return layer_norm(x, (WIDTH,))


def attention(x: Tensor, source: Tensor, weights: Tensor) -> Tensor:
    """What states x [n, queries, WIDTH] read of a source [n, tokens, WIDTH]."""
    query, key, value, out = weights
    q, k, v = (one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (x @ query, source @ key, source @ value))
    return ((q @ k.mT / (WIDTH / HEADS) ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2) @ out


def questions(rows: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Keys that are asked for [rows], values of both sources by key [rows, 2, KEYS], and pairs of values."""
    asked = torch.randint(KEYS, (rows,), generator=chance)
    values = torch.randint(VALUES, (rows, 2, KEYS), generator=chance)
    first, second = values[torch.arange(rows), :, asked].T
    return asked, values, VALUES * first + second


@torch.no_grad()
def one_source(way: str, seed: int) -> float:
    """The largest difference between what a way reads of one source and standard attention to it."""
    chance = generator(f"{way}/one", seed)
    model = Decoder.new(way, chance)
    model.weights = model.weights.double()
    x, source = (torch.randn(4, tokens, WIDTH, generator=chance, dtype=torch.float64) for tokens in (3, KEYS))
    query, key, value, out = model.weights[0].unflatten(-1, (HEADS, -1))
    q = torch.einsum("ntd,dhc->nhtc", normed(x), query)
    k, v = (torch.einsum("ntd,dhc->nhtc", source, weight) for weight in (key, value))
    read = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return float((model.read(x, (source,)) - x - read @ out.flatten(1)).abs().max())
