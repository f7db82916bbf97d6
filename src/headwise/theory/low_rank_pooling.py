"""Several attention distributions over a text's states from one bilinear form of low rank."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.flop_counter import FlopCounterMode

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.theory.fitting import adam, drawn, generator, share_right

WIDTH, HEADS, WORDS, TOKENS, CLASSES = 24, 4, 12, 24, 4  # channels of a state; distributions; words; tokens of a text
ROWS, TESTED, RATE = 32, 1024, 1e-2
LENGTHS = (256, 1024)  # whose arithmetic is compared


@register("low_rank_pooling")
@dataclass(frozen=True, kw_only=True)
class LowRankPooling(Experiment):
    """Texts in which one word that comes after a mark tells the class, read by a GRU and pooled.

    steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="LAMA",
        statement="Each of the distributions is attention by an affinity of rank 1; their cost grows with the text's "
        "length, not its square; a classifier on them is within a point of one on multi-head self-attention, with "
        "fewer parameters",
        paper="Low Rank Factorization for Compact Multi-Head Self-Attention, arXiv 1912.00835, section 3",
        setting="reviews and news, bidirectional GRUs, up to 20 distributions",
        seconds=60,
        systems=(105,),
        differs="drawn texts and a GRU of one direction; scores are not scaled to length 1; the pooled vectors go "
        "straight to the classifier, and those of self-attention are means over its tokens",
        leaves_out="texts of people",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("a distribution beside that of the rank-1 affinity p_i q_i', largest difference", "rank_one",
             "rank_one_other", "the affinity of the next component", below=1e-6),
        Part("exponent of arithmetic by length", "exponent", "exponent_self", "multi-head self-attention", below=1.05),
        Part("right answers more than on multi-head self-attention, share", "gain", "gain_mean",
             "the mean of all states", above=-0.01),
        Part("parameters of pooling over those of multi-head self-attention", "weights", "weights_full",
             "an affinity of full rank for each distribution", below=1.0),
    )  # fmt: skip

    steps: Steps = 400

    def draw(self, seed: int) -> dict[str, Any]:
        """Differences, exponents and right answers of poolings that are trained from the same start."""
        chance = generator(self.name, seed)
        marked = torch.randperm(WORDS, generator=chance)[0]
        x, label = texts(TESTED, marked, chance)
        right, states = {}, torch.randn(1, TOKENS, WIDTH, generator=chance)
        pools = {"low": LowRank.new(chance), "self": SelfAttention.new(chance), "mean": Mean()}
        for name, pool in pools.items():
            right[name] = self.trained(pool, seed, marked, (x, label))
        low, other = pools["low"], pools["self"]
        assert isinstance(low, LowRank)
        with torch.no_grad():
            exact = LowRank(*(one.double() for one in low.parameters()))
            found = exact.weights(states.double())[0]
            alone = torch.stack([exact.alone(states[0].double(), head) for head in range(HEADS)])
        return {"measures": {
            "rank_one": float((found - alone).abs().max()),
            "rank_one_other": float((found - alone.roll(1, 0)).abs().max()),
            "exponent": exponent(low), "exponent_self": exponent(other),
            "gain": right["low"] - right["self"], "gain_mean": right["mean"] - right["self"],
            "weights": size(low) / size(other), "weights_full": (HEADS * WIDTH**2 + WIDTH) / size(other),
            **{f"right_{name}": share for name, share in right.items()},
        }}  # fmt: skip

    def trained(self, pool: Pool, seed: int, marked: Tensor, held: tuple[Tensor, Tensor]) -> float:
        """Right answers on held texts."""
        chance = generator(f"{self.name}/texts", seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reader = nn.GRU(WORDS, WIDTH, batch_first=True)
        out = drawn(chance, pool.vectors * WIDTH, CLASSES)

        def logits(x: Tensor) -> Tensor:
            return pool(reader(one_hot(x, WORDS).float())[0]).flatten(1) @ out

        def loss() -> Tensor:
            x, label = texts(ROWS, marked, chance)
            return cross_entropy(logits(x), label)

        adam([*reader.parameters(), *pool.parameters(), out], loss, self.steps, RATE)
        with torch.no_grad():
            return share_right(logits(held[0]), held[1])


class Pool(ABC):
    """From states [n, tokens, WIDTH] to so many vectors of a text, [n, vectors, WIDTH]."""

    vectors = HEADS

    def parameters(self) -> tuple[Tensor, ...]:
        """What is trained."""
        return tuple(vars(self).values())

    @abstractmethod
    def __call__(self, states: Tensor) -> Tensor:
        """What is pooled of them."""


class Mean(Pool):
    """The mean of all states."""

    vectors = 1

    def __call__(self, states: Tensor) -> Tensor:
        return states.mean(1, keepdim=True)


@dataclass
class LowRank(Pool):
    """Scores are products of a component of a learned context and one of the state: P' c * Q' h."""

    context: Tensor
    p: Tensor
    q: Tensor

    @classmethod
    def new(cls, chance: torch.Generator) -> LowRank:
        context = torch.randn(WIDTH, generator=chance).requires_grad_()
        return cls(context, drawn(chance, WIDTH, HEADS), drawn(chance, WIDTH, HEADS))

    def weights(self, states: Tensor) -> Tensor:
        """[n, HEADS, tokens]"""
        return ((states @ self.q) * (self.context @ self.p)).softmax(1).mT

    def alone(self, states: Tensor, head: int) -> Tensor:
        """The weights of one text by the affinity of rank 1 of one component."""
        affinity = torch.outer(self.p[:, head], self.q[:, head])
        return (self.context @ affinity @ states.T).softmax(-1)

    def __call__(self, states: Tensor) -> Tensor:
        return self.weights(states) @ states


@dataclass
class SelfAttention(Pool):
    """Multi-head self-attention of all states, and the mean over them of what each head reads of whole states."""

    q: Tensor
    k: Tensor

    @classmethod
    def new(cls, chance: torch.Generator) -> SelfAttention:
        return cls(drawn(chance, WIDTH, WIDTH), drawn(chance, WIDTH, WIDTH))

    def __call__(self, states: Tensor) -> Tensor:
        q, k = ((states @ weight).unflatten(-1, (HEADS, -1)).transpose(1, 2) for weight in (self.q, self.k))
        weights = (q @ k.mT / (WIDTH / HEADS) ** 0.5).softmax(-1)
        return (weights @ states[:, None]).mean(2)


def texts(rows: int, marked: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Words [rows, TOKENS] and classes: of the word that comes after the mark, which is there once."""
    others = torch.randint(WORDS - 1, (rows, TOKENS), generator=chance)
    x = others + (others >= marked).long()
    place = torch.randint(TOKENS - 1, (rows, 1), generator=chance)
    label = x.gather(1, place + 1)[:, 0] % CLASSES
    return x.scatter(1, place, int(marked)), label


def exponent(pool: Pool) -> float:
    """By how much arithmetic grows where texts are longer: 1 in proportion."""
    found = []
    for tokens in LENGTHS:
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            pool(torch.zeros(1, tokens, WIDTH))
        found.append(counted.get_total_flops())
    return math.log(found[1] / found[0]) / math.log(LENGTHS[1] / LENGTHS[0])


def size(pool: Pool) -> int:
    """Numbers that it learns."""
    return sum(one.numel() for one in pool.parameters())
