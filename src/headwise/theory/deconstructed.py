"""Which principles of attention a small language model needs: each is taken away, in all layers and in every other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.assets import novel
from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Seeds, Size, Steps, register
from headwise.layers.attend import Attend
from headwise.layers.base import Dims, Streams
from headwise.layers.layer import AttentionLayer
from headwise.layers.normalise.softmax import Softmax
from headwise.layers.pairs import Block, Normalise, Row
from headwise.layers.position.rope import Rope
from headwise.layers.score.dot import Dot
from headwise.theory.fitting import adam, generator
from headwise.theory.writer import loss_of

WIDTH, HEADS, LAYERS, RATE = 48, 4, 2, 5e-3
BYTES = 256
HELD = 0.1  # of the text, its end, on which perplexity is told
FIXED = ("random", "fixed text")  # variants whose maps no input changes
VARIANTS = ("mlp", "taylor", "alone", *FIXED, "static")


@dataclass(frozen=True)
class Polynomial(Normalise):
    """Weights are 1 + s + s^2 / 2 over their sum."""

    def weights(self, scores: Tensor, block: Block) -> Tensor:
        found = (1 + scores + scores.square() / 2) * block.seen
        return found / found.sum(-1, keepdim=True)

    def alone(self, scores: Tensor, row: Row) -> Tensor:
        found = 1 + scores + scores.square() / 2
        return found / found.sum()


class Gated(nn.Module):
    """A gated feed-forward layer of as many parameters as attention, which mixes no tokens."""

    def __init__(self) -> None:
        super().__init__()
        inside = 4 * WIDTH // 3
        self.up, self.down = nn.Linear(WIDTH, 2 * inside, bias=False), nn.Linear(inside, WIDTH, bias=False)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """`x [batch, tokens, WIDTH]` -> the same shape."""
        gate, value = self.up(x).chunk(2, dim=-1)
        made: Tensor = self.down(F.silu(gate) * value)
        return made


class Mixer(nn.Module):
    """Attention of the package's own parts, with queries and keys of what a variant lets them see.

    The last row of a batch is the text that never changes.
    """

    drawn: Tensor

    def __init__(self, kind: str, tokens: int) -> None:
        super().__init__()
        self.kind = kind
        self.layer = AttentionLayer("heads | rope", Dims(WIDTH, HEADS, WIDTH // HEADS))
        self.mix = Attend(Rope(), Dot(), Polynomial() if kind == "taylor" else Softmax())
        self.register_buffer("drawn", torch.randn(1, tokens, WIDTH))

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """`x` and the tokens' embeddings [batch, tokens, WIDTH] -> what is read, of the same shape."""
        streams = self.streams(x, embedded)
        read = by_time(streams) if self.kind == "alone" else self.mix.parallel(streams)
        made: Tensor = self.layer.out(read, x)
        return made

    def streams(self, x: Tensor, embedded: Tensor) -> Streams:
        """Values of `x`, and queries and keys of what the variant lets them see."""
        own = self.layer.streams(x, None, None, None)[0]
        seen = {"static": embedded, "random": self.drawn[:, : x.shape[1]], "fixed text": x[-1:]}.get(self.kind)
        if seen is None:
            return own
        other = self.layer.streams(seen, None, None, None)[0]
        return replace(own, q=other.q.expand_as(own.q), k=other.k.expand_as(own.k))


def by_time(streams: Streams) -> Tensor:
    """What is read where each token has a score of its own, sum of silu(q) k over channels, and weights are the
    softmax of these over the tokens so far: no score of a pair."""
    score = (F.silu(streams.q) * streams.k).sum(-1, keepdim=True) * streams.scale
    weight = (score - score.amax(2, keepdim=True)).exp()
    return (weight * streams.v).cumsum(2) / weight.cumsum(2).clamp_min(1e-12)


class Lm(nn.Module):
    """A language model of bytes whose layer i attends as `kinds[i]` says."""

    fixed: Tensor

    def __init__(self, kinds: tuple[str, ...], tokens: int, fixed: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", fixed[None, :tokens])
        self.embed = nn.Embedding(BYTES, WIDTH)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.mixers = nn.ModuleList(Gated() if kind == "mlp" else Mixer(kind, tokens) for kind in kinds)
        self.wide = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)) for _ in kinds
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * len(kinds) + 1))
        self.head = nn.Linear(WIDTH, BYTES, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """`ids [batch, tokens]` -> logits [batch, tokens, BYTES]."""
        hidden = self.hidden(ids)[-1][: len(ids)]
        logits: Tensor = self.head(self.norms[-1](hidden))
        return logits

    def hidden(self, ids: Tensor) -> list[Tensor]:
        """What each layer is given, and the last one gives; the last row is the text that never changes."""
        embedded = x = self.embed(torch.cat((ids, self.fixed[:, : ids.shape[1]])))
        found = [x]
        for place, (mixer, wide) in enumerate(zip(self.mixers, self.wide, strict=True)):
            x = x + mixer(self.norms[2 * place](x), embedded)
            x = x + wide(self.norms[2 * place + 1](x))
            found.append(x)
        return found

    def maps(self, ids: Tensor) -> Tensor:
        """The attention of the first layer's heads, [batch, heads, tokens, tokens]."""
        mixer, embedded = self.mixers[0], self.hidden(ids)[0]
        assert isinstance(mixer, Mixer)
        streams = mixer.streams(self.norms[0](embedded), embedded)
        hidden = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        products = (streams.q @ streams.k.transpose(2, 3) * streams.scale).masked_fill(hidden, -torch.inf)
        return products.softmax(-1)[: len(ids)]


@register("deconstructed")
@dataclass(frozen=True, kw_only=True)
class Deconstructed(Experiment):
    """Trains a small language model with each replacement of attention, alike in everything else.

    tokens, batch, steps: of its training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Attention taken apart",
        statement="Mixing tokens is what a language model cannot do without: standard attention is best, then its "
        "second-order polynomial, then maps of static embeddings, of one text and of random vectors, and last a layer "
        "that mixes nothing; where every other layer is standard, each comes near it",
        paper="Deconstructing Attention: Investigating Design Principles for Effective Language Modeling, arXiv "
        "2510.11602, sections 3 (variants) and 5 (uniform and hybrid models)",
        setting="models of 70 to 500 million parameters and 15 billion tokens; perplexity 38.1 standard, 38.5 to 45.8 "
        "hybrid, 993 uniform without mixing",
        seconds=60,
        systems=(300,),
        differs="bytes of one novel, 2 layers of 48 channels, 300 steps; queries and keys are turned by their "
        "positions in all variants with pairs; of a hybrid's two layers the first is replaced",
        leaves_out="sizes at which models do downstream tasks",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("difference of the maps of two texts, random vectors and one text, "
             "largest", "maps", "maps_standard", "standard attention", below=1e-6),
        Part("loss of the polynomial less standard's, nats a byte", "taylor", "again",
             "standard from another start less standard", above=0.01),
        Part("least loss of maps of static embeddings, one text and random vectors less the "
             "polynomial's", "static", "again", "standard from another start less standard", above=0.01),
        Part("loss without mixing less the largest of these", "mlp", "again",
             "standard from another start less standard", above=0.01),
        Part("largest perplexity of a model whose every other layer is standard, over "
             "standard's", "hybrid", "uniform", "the same replacement in all layers, largest", below=1.25),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "perplexity a byte: standard, polynomial, by time, static, text, random, none": Panel("variant", "perplexity"),
    }
    seeds: Seeds = 3

    tokens: Size = 32
    batch: Size = 8
    steps: Steps = 300

    def draw(self, seed: int) -> dict[str, Any]:
        """Losses of all models of one seed."""
        standard, models = ("standard",) * LAYERS, {}
        losses = {"again": self.trained(standard, seed, start=1)[1]}
        for kind in ("standard", *VARIANTS):
            models[kind], losses[kind] = self.trained((kind,) * LAYERS, seed)
        hybrid = {kind: self.trained((kind, "standard") * (LAYERS // 2), seed)[1] for kind in VARIANTS}
        best, fixed = losses["standard"], [losses[kind] for kind in (*FIXED, "static")]
        order = ("standard", "taylor", "alone", "static", "fixed text", "random", "mlp")
        return {
            "measures": {
                "maps": max(self.changed(models[kind], seed) for kind in FIXED),
                "maps_standard": self.changed(models["standard"], seed),
                "taylor": losses["taylor"] - best,
                "static": min(fixed) - losses["taylor"],
                "mlp": losses["mlp"] - max(fixed),
                "again": losses["again"] - best,
                "hybrid": perplexity(max(hybrid.values()) - best),
                "uniform": perplexity(max(losses.values()) - best),
            }
            | {f"perplexity_{kind}": perplexity(one) for kind, one in losses.items()}
            | {f"perplexity_hybrid_{kind}": perplexity(one) for kind, one in hybrid.items()},
            "lines": {
                next(iter(self.panels)): {
                    "in all layers": [[place, perplexity(losses[kind])] for place, kind in enumerate(order)],
                    "in every other": [
                        [place, perplexity(hybrid[kind])] for place, kind in enumerate(order) if kind in hybrid
                    ],
                }
            },
        }

    def trained(self, kinds: tuple[str, ...], seed: int, start: int = 0) -> tuple[Lm, float]:
        """A model, trained from one of several starts, and its loss on the end of the text, nats a byte."""
        text = torch.tensor(list(novel().encode()), dtype=torch.int64)
        cut = int(len(text) * (1 - HELD))
        chance = generator(f"{self.name} texts", seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1000 * start)
            model = Lm(kinds, self.tokens, text)
        adam(list(model.parameters()), lambda: loss_of(model, self.drawn(text[:cut], self.batch, chance)),
             self.steps, RATE)  # fmt: skip
        held = text[cut:]
        count = min(256, len(held) // (self.tokens + 1))
        with torch.no_grad():
            pieces = held[: count * (self.tokens + 1)].view(count, -1)
            return model, float(loss_of(model, pieces))

    def drawn(self, text: Tensor, count: int, chance: torch.Generator) -> Tensor:
        """Pieces [count, tokens + 1] of a text."""
        first = torch.randint(0, len(text) - self.tokens - 1, (count, 1), generator=chance)
        return text[first + torch.arange(self.tokens + 1)]

    @torch.no_grad()
    def changed(self, model: Lm, seed: int) -> float:
        """The largest difference of the first layer's maps between two texts."""
        ids = torch.randint(0, BYTES, (2, self.tokens), generator=generator(f"{self.name} maps", seed))
        one, other = model.maps(ids)
        return float((one - other).abs().max())


def perplexity(loss: float) -> float:
    """Of a loss in nats."""
    return float(torch.tensor(loss).exp())
