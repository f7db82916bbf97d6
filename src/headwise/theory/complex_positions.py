"""Embeddings whose real part is what a token says and whose imaginary part is where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import elu

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, register
from headwise.theory.fitting import generator

NEAR, FAR = 128, 4096  # distances: the first are those below NEAR, the last those from FAR / 2
BASE, STEPS, QUERIES = 10000.0, 16, 16  # of sinusoids and of RoPE; distances of a bin; queries that are averaged
TOKENS = 48  # of texts in which layers are compared


@register("complex_positions")
@dataclass(frozen=True, kw_only=True)
class ComplexPositions(Experiment):
    """Scores of random heads: the real part of the complex inner product of query and key.

    dim: channels of an embedding and of a head. heads: how many random heads are averaged.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="CoPE: complex positional encoding",
        statement="Without an imaginary part the first layer is standard attention; mean scores of tokens that say the "
        "same do not fall with distance, as RoPE's envelope does; and features of linear attention take the "
        "embeddings as they are",
        paper="CoPE: A Lightweight Complex Positional Encoding, arXiv 2508.18308, abstract",
        setting="encoders of the size of BERT, GLUE",
        seconds=5,
        systems=(201,),
        differs="written from the list's row and the abstract, as its text and code were not to be had: weights are "
        "real, the score is the real part of the complex inner product, and imaginary parts are sinusoids; heads are "
        "random, not trained",
        leaves_out="trained models, and later layers",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("output without imaginary part beside standard attention, largest difference", "equal", "equal_placed",
             "with the imaginary part", below=1e-6),
        Part("what the mean score's envelope loses from near to far, of what it is near; projected apart", "fall",
             "fall_rope", "RoPE's, of the same queries and keys", below=0.1),
        Part("the same with queries and keys projected alike, the worst case", "fall_alike", "fall_rope",
             "RoPE's, of the same queries and keys", below=0.1),
        Part("output of the running state beside that of all pairs, largest difference", "running", "running_biased",
             "with T5's way, a bias of the distance on pairs, that the state cannot hold", below=1e-6),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"mean score by distance": Panel("tokens", "score, of that near")}

    dim: Size = 64
    heads: Size = 32

    def draw(self, seed: int) -> dict[str, Any]:
        """Differences, falls and shares of random heads."""
        chance = generator(self.name, seed)
        shape = (self.heads, self.dim, self.dim)
        query, key = (torch.randn(shape, generator=chance, dtype=torch.float64) / self.dim**0.5 for _ in range(2))
        tokens = torch.randn(self.heads, TOKENS, self.dim, generator=chance, dtype=torch.float64)
        none = torch.zeros(TOKENS, self.dim, dtype=torch.float64)
        # Tokens that say the same: a head's query and key of the real part agree.
        said = torch.randn(self.heads, 1, self.dim, generator=chance, dtype=torch.float64) @ query
        lines = {
            "projected apart": complex_line(said, query, key), "projected alike": complex_line(said, query, query),
            "RoPE": turned_line(said),
        }  # fmt: skip
        plain = attention(tokens @ query @ (tokens @ key).mT, tokens)
        placed = sinusoids(TOKENS, self.dim)
        q, k = (features_of(beside(tokens, placed, weight)) for weight in (query, key))
        bias = torch.randn(TOKENS, generator=chance, dtype=torch.float64).square()
        return {"measures": {
            "equal": gap(attention(scores(tokens, none, query, key), tokens), plain),
            "equal_placed": gap(attention(scores(tokens, placed, query, key), tokens), plain),
            **{name: fallen(lines[line]) for name, line in
               (("fall", "projected apart"), ("fall_alike", "projected alike"), ("fall_rope", "RoPE"))},
            "running": gap(running(q, k, tokens), by_pairs(q @ k.mT, tokens)),
            "running_biased": gap(running(q, k, tokens), by_pairs(biased(q @ k.mT, bias), tokens)),
        }, "lines": {"mean score by distance": {name: drawn_line(line) for name, line in lines.items()}}}  # fmt: skip


def sinusoids(tokens: int, dim: int) -> Tensor:
    """Positions [tokens, dim]: sines and cosines, as of the Transformer, of length 1 for each channel on average."""
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * speeds(dim)
    return torch.cat((angles.sin(), angles.cos()), dim=-1) * 2**0.5


def speeds(dim: int) -> Tensor:
    """Angles a token of pairs of channels."""
    return BASE ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def beside(real: Tensor, imaginary: Tensor, weight: Tensor) -> Tensor:
    """Real and imaginary part of what real weights [heads, dim, dim] make of embeddings, beside each other."""
    return torch.cat((real @ weight, imaginary @ weight), dim=-1)


def scores(real: Tensor, imaginary: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The real part of the complex inner product of queries and keys, [heads, tokens, tokens]."""
    q, k = (torch.complex(real @ weight, imaginary.expand_as(real) @ weight) for weight in (query, key))
    return (q @ k.mH).real


def attention(asked: Tensor, values: Tensor) -> Tensor:
    """Causal softmax attention by scores."""
    later = torch.ones(asked.shape[-2:], dtype=torch.bool).triu(1)
    return (asked / values.shape[-1] ** 0.5).masked_fill(later, -torch.inf).softmax(-1) @ values


def features_of(x: Tensor) -> Tensor:
    """Of linear attention, [heads, tokens, channels]."""
    return elu(x) + 1


def running(q: Tensor, k: Tensor, values: Tensor) -> Tensor:
    """Linear attention from a state that a token is added to at a time."""
    memory, total, found = 0.0 * k[:, :1].mT @ values[:, :1], 0.0 * k[:, :1].mT, []
    for place in range(values.shape[1]):
        one = slice(place, place + 1)
        memory, total = memory + k[:, one].mT @ values[:, one], total + k[:, one].mT
        found.append(q[:, one] @ memory / (q[:, one] @ total))
    return torch.cat(found, dim=1)


def by_pairs(weights: Tensor, values: Tensor) -> Tensor:
    """The same from the weights of all pairs."""
    causal = weights.tril()
    return causal @ values / causal.sum(-1, keepdim=True)


def biased(weights: Tensor, bias: Tensor) -> Tensor:
    """Weights of pairs to which a number of their distance is added."""
    place = torch.arange(len(bias))
    return weights + bias[(place[:, None] - place).clamp_min(0)]


def complex_line(said: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Mean score [FAR] of a query that comes so many tokens after a key which says the same, over heads and over
    queries at QUERIES places."""
    placed = sinusoids(2 * FAR, query.shape[-1])
    asked = placed @ (query @ key.mT).mean(0)  # by the mean of all heads
    last = [FAR + query * FAR // QUERIES for query in range(QUERIES)]
    found = torch.stack([(placed[one - FAR + 1 : one + 1].flip(0) * asked[one]).sum(-1) for one in last])
    return said.square().sum(-1).mean() + found.mean(0)


def turned_line(said: Tensor) -> Tensor:
    """Mean score [FAR] under RoPE of the same queries and keys: of as many channels as real and imaginary part have."""
    one, other = torch.cat((said, said), dim=-1).chunk(2, dim=-1)
    angles = torch.arange(FAR, dtype=torch.float64)[:, None] * speeds(2 * said.shape[-1])
    return (angles.cos() * (one.square() + other.square())).sum(-1).mean(0)


def fallen(line: Tensor) -> float:
    """What the highest mean scores of bins lose from the near distances to the far ones, of those near."""
    highest = line.unflatten(0, (-1, STEPS)).amax(-1)
    near, far = highest[: NEAR // STEPS].mean(), highest[FAR // STEPS // 2 :].mean()
    return float(1 - far / near)


def drawn_line(line: Tensor) -> list[list[float]]:
    """Points of a line, of what it is near."""
    near = line[:STEPS].mean()
    return [[float(place), float(line[place] / near)] for place in range(0, FAR, FAR // 64)]


def gap(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())
