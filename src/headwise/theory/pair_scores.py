"""Which words go together, learned by a network of query and key and by their product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.layers.base import Dims, StreamShape
from headwise.layers.layer import AttentionLayer
from headwise.layers.pairs import Block, Score
from headwise.layers.score.additive import Additive
from headwise.layers.score.dot import Dot
from headwise.layers.score.general import General
from headwise.layers.score.neural import Neural
from headwise.theory.decoder import seeded
from headwise.theory.fitting import adam, generator

WORDS, HEAD = 64, 8
LESS = -0.02  # nats, the least of what the paper has perplexity fall by
RATES = (1e-2, 3e-2)  # at each of which a side is trained; its least loss counts


@register("pair_scores")
@dataclass(frozen=True, kw_only=True)
class PairScores(Experiment):
    """A relation drawn at random, each word to half of all words: a query says which, by its weights of keys.

    steps: of training. hidden: channels of the network. tokens: of the text whose weights are computed in blocks; it
    is compared with one twice as long.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Neural attention",
        statement="A small network of query and key in the place of their product fits relations of words at a lower "
        "cross-entropy, with heads of the same size; in blocks it gives the same weights, with memory that the block "
        "sets",
        paper="Neural Attention: A Novel Mechanism for Enhanced Expressive Power in Transformer Models, "
        "arXiv 2502.17206, section 3, and its code",
        setting="WikiText-103 and CIFAR, heads of 64 channels projected to 2",
        seconds=45,
        systems=(178,),
        differs="one hidden layer of 32 channels, as the paper's equation has it, where its code has two and one "
        "network for all heads; no projection down, as heads are of 8 channels; words are drawn",
        leaves_out="the perplexity of a language model",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("cross-entropy more than by the product of the same head size, nats", "same", "same_general",
             "a matrix between query and key", below=LESS),
        Part("cross-entropy more than by a product with at least as many parameters, nats", "equal", "equal_general",
             "a matrix between query and key", below=LESS),
        Part("weights in blocks beside those of all pairs at once, largest difference", "blocks", "blocks_other",
             "the weights of other first values", below=1e-6),
        Part("the largest tensor of a text twice as long over that of the text", "memory", "memory_once",
             "all pairs at once", below=1.5),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("blocks", "memory")

    steps: Steps = 1000
    hidden: Size = 32
    tokens: Annotated[int, Ge(1024)] = 1024

    def draw(self, seed: int) -> dict[str, Any]:
        """Cross-entropies of scores that are fitted, and what blocks change."""
        related = torch.rand(WORDS, WORDS, generator=generator(self.name, seed)).argsort(-1) < WORDS // 2
        network = Neural(hidden=self.hidden)
        wide = next(size for size in range(HEAD, 2 * self.hidden) if numbers(Dot(), size) >= numbers(network, HEAD))
        scores: dict[str, tuple[Score, int]] = {
            "neural": (network, HEAD), "dot": (Dot(), HEAD), "general": (General(), HEAD), "wide": (Dot(), wide),
            "additive": (Additive(hidden=self.hidden), HEAD), "narrow": (Neural(), HEAD),
        }  # fmt: skip
        lost = {name: self.fitted(*one, related, seed) for name, one in scores.items()}
        return {"measures": {
            "same": lost["neural"] - lost["dot"], "same_general": lost["general"] - lost["dot"],
            "equal": lost["neural"] - lost["wide"], "equal_general": lost["general"] - lost["wide"],
            **{f"loss_{name}": one for name, one in lost.items()}, **self.blocks(seed),
        }}  # fmt: skip

    def fitted(self, score: Score, size: int, related: Tensor, seed: int) -> float:
        """The cross-entropy of the weights with the relation, less that of the relation itself."""
        wanted = related / related.sum(-1, keepdim=True)
        found = []
        for rate in RATES:
            asks = seeded(seed, lambda: Asked(score, size))

            def loss(asks: Asked = asks) -> Tensor:
                return -(wanted * asks().log_softmax(-1)).sum(-1).mean()

            adam([*asks.parameters()], loss, self.steps, rate)
            found.append(float(loss().detach() + (wanted * wanted.clamp_min(1e-9).log()).sum(-1).mean()))
        return min(found)

    @torch.no_grad()
    def blocks(self, seed: int) -> dict[str, float]:
        """The layer's weights in blocks beside those of all pairs, and the largest tensors."""
        dims = Dims(HEAD, 1, HEAD)
        layer, other = (seeded(seed + more, lambda: AttentionLayer("neural", dims)) for more in (0, 1))
        x = torch.randn(1, 2 * self.tokens, HEAD, generator=generator(f"{self.name}/x", seed))
        text, largest = x[:, : self.tokens], {}
        for name, weights in (("", in_blocks), ("_once", at_once)):
            sizes = [largest_of(partial(weights, layer, one)) for one in (text, x)]
            largest[f"memory{name}"] = sizes[1] / sizes[0]
        whole = at_once(layer, text)
        return largest | {
            "blocks": float((in_blocks(layer, text) - whole).abs().max()),
            "blocks_other": float((at_once(other, text) - whole).abs().max()),
        }


class Asked(nn.Module):
    """Learned queries and keys of all words, and a score of them."""

    def __init__(self, score: Score, size: int) -> None:
        super().__init__()
        self.score = score
        self.q, self.k = (nn.Parameter(torch.randn(1, 1, WORDS, size)) for _ in range(2))
        first = score.learned(Dims(size, 1, size), StreamShape(1, 1, 1, size, size))
        self.learned = nn.ParameterDict({name: nn.Parameter(one) for name, one in first.items()})

    def forward(self) -> Tensor:
        """The scores of all pairs, [WORDS, WORDS]."""
        seen, scale = torch.ones(1, 1, WORDS, WORDS, dtype=torch.bool), self.q.shape[-1] ** -0.5
        block = Block(self.q, self.k, seen, seen[0, 0].long(), {}, dict(self.learned.items()), scale)
        return self.score.scores(block)[0, 0]


def numbers(score: Score, size: int) -> int:
    """How many numbers are learned."""
    return sum(one.numel() for one in Asked(score, size).parameters())


def in_blocks(layer: AttentionLayer, x: Tensor) -> Tensor:
    """What the layer reads, before its output matrix."""
    return layer.mix.parallel(layer.streams(x, None, None, None)[0])


def at_once(layer: AttentionLayer, x: Tensor) -> Tensor:
    """The same with one tensor of all pairs."""
    streams, count = layer.streams(x, None, None, None)[0], x.shape[1]
    distance = torch.arange(count)[:, None] - torch.arange(count)
    seen = (distance >= 0)[None, None]
    scores = Neural().scores(Block(streams.q, streams.k, seen, distance, {}, streams.learned, streams.scale))
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ streams.v


class Largest(TorchDispatchMode):
    """Keeps the numbers of the largest tensor that anything makes."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.found = max(self.found, made.numel())
        return made


def largest_of(work: Callable[[], Any]) -> int:
    """Numbers of the largest tensor that is made."""
    with Largest() as seen:
        work()
    return seen.found
