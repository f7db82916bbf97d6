"""A frozen model's attention as a sparse graph, over which a small network is trained beside it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.layers.base import Dims
from headwise.layers.layer import AttentionLayer
from headwise.layers.out.gin import Isomorphic
from headwise.layers.projections import linear, split
from headwise.theory.decoder import Decoder, Heads, attention, seeded, turned
from headwise.theory.fitting import adam, generator
from headwise.theory.pieces import held, text
from headwise.theory.writer import TOKENS, WIDTH, loss_of, taught, writer

HEADS, LAYERS, HIDDEN, RANK = 4, 2, 8, 4  # channels of the graph's network; and the rank of as many parameters
PIECES, ROWS, LEAST = 16, 16, 0.1  # of the small corpus; LEAST: weights below which there is no edge
RATES = (3e-3, 1e-2)  # at each of which a side is trained; it counts by its least validation loss at the end
EVERY = 20  # steps after which losses are looked at


@register("graph_adapter")
@dataclass(frozen=True, kw_only=True)
class GraphAdapter(Experiment):
    """A model of the novel's bytes that goes on with a few pieces read backwards, by a graph network or by low-rank
    changes of its matrices.

    steps: of the model. more: of what is added to it.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Graph-aware attention",
        statement="At eps = -1, before its network, a graph isomorphism layer over attention is ordinary attention; an "
        "adapter of scale 0 leaves the model as it was; trained on a small corpus, a sparse graph adapter ends with a "
        "smaller gap between validation and training than LoRA of as many parameters",
        paper="Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers, arXiv 2501.02393, sections 2 "
        "and 3, and its code",
        setting="Llama-3.2-3B, mathematics questions, sharp attention with a threshold",
        seconds=250,
        systems=(263,),
        differs="edges are the mean of the heads' weights above 0.1, where the code may learn or sharpen them; one "
        "network of 8 hidden channels a layer, and a decoder of two layers",
        leaves_out="sums, means, largest values and variances as aggregates, and pretrained models",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("a node at eps = -1 beside attention's output, largest difference", "node", "node_zero", "eps = 0",
             below=1e-6),
        Part("change of logits by an adapter of scale 0, largest", "off", "off_one", "a scale of 1", below=1e-12),
        Part("gap of validation to training less that of LoRA, nats", "gap", "gap_alone",
             "the same network of each token alone, without edges", below=0.0),
        Part("the same, LoRA stopped at the training loss of the other", "matched", "matched_alone",
             "the same network of each token alone, without edges", below=0.0),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("node", "off")

    steps: Steps = 600
    more: Steps = 400

    def draw(self, seed: int) -> dict[str, Any]:
        """Gaps and losses after the same steps, and what is exact."""
        base = writer(lambda: Heads(WIDTH, HEADS), LAYERS, seed)
        taught(base, self.name, seed, self.steps)
        sides: dict[str, Callable[[Heads], nn.Module]] = {
            "graph": Graph, "alone": partial(Graph, edges=False), "lora": LowRank,
        }  # fmt: skip
        tracks = {
            name: min(
                (self.adapted(with_adapters(base, make, seed), seed, rate) for rate in RATES),
                key=lambda track: track[-1][1],
            )
            for name, make in sides.items()
        }
        found: dict[str, float] = {}
        for name in ("graph", "alone"):
            after, lora = tracks[name][-1], tracks["lora"]
            stopped = lora[min(range(len(lora)), key=[abs(one[0] - after[0]) for one in lora].__getitem__)]
            end = "" if name == "graph" else "_alone"
            found |= {f"gap{end}": gap(after) - gap(lora[-1]), f"matched{end}": gap(after) - gap(stopped)}
        return {"measures": {
            **found, **{f"train_{name}": track[-1][0] for name, track in tracks.items()},
            **{f"validation_{name}": track[-1][1] for name, track in tracks.items()},
            **self.exact(base, seed),
        }}  # fmt: skip

    def adapted(self, model: Decoder, seed: int, rate: float) -> list[tuple[float, float]]:
        """Training and validation losses along the training of what is added."""
        chance = generator(f"{self.name}/corpus", seed)
        first = torch.randint(len(text()) // 2, (PIECES, 1), generator=chance)
        corpus, valid = text()[first + torch.arange(TOKENS + 1)].flip(-1), held(TOKENS).flip(-1)
        track: list[tuple[float, float]] = []
        steps = count()

        @torch.no_grad()
        def look() -> None:
            track.append((float(loss_of(model, corpus)), float(loss_of(model, valid))))

        def loss() -> Tensor:
            if next(steps) % EVERY == 0:
                look()
            return loss_of(model, corpus[torch.randint(PIECES, (ROWS,), generator=chance)])

        learned = [one for one in model.parameters() if one.requires_grad]
        adam(learned, loss, self.more, rate)
        look()
        return track

    @torch.no_grad()
    def exact(self, base: Decoder, seed: int) -> dict[str, float]:
        """What eps = -1 and a scale of 0 change."""
        dims, x = (
            Dims(WIDTH, HEADS, WIDTH // HEADS),
            torch.randn(8, TOKENS, WIDTH, generator=generator(self.name, seed)),
        )
        plain = seeded(seed, lambda: AttentionLayer("heads", dims))
        read = plain.mix.parallel(plain.streams(x, None, None, None)[0])
        gin, found = Isomorphic(dims, WIDTH), {}
        gin.o.load_state_dict(plain.out.o.state_dict())
        for name, eps in (("node", -1.0), ("node_zero", 0.0)):
            gin.eps.fill_(eps)
            found[name] = float((gin.node(read, x) - plain(x)[0]).abs().max())
        ids = held(TOKENS)[:8, :-1]
        for name, scale in (("off", 0.0), ("off_one", 1.0)):
            model = with_adapters(base, Graph, seed)
            for mixer in model.mixers:
                assert isinstance(mixer, Graph)
                mixer.scale.fill_(scale)
            found[name] = float((model(ids) - base(ids)).abs().max())
        return found


def gap(losses: tuple[float, float]) -> float:
    """Validation less training."""
    return losses[1] - losses[0]


def with_adapters(base: Decoder, make: Callable[[Heads], nn.Module], seed: int) -> Decoder:
    """The model, frozen, with something to train in each layer."""
    made = deepcopy(base).requires_grad_(False)
    made.mixers = seeded(seed, lambda: nn.ModuleList(make(one) for one in made.mixers if isinstance(one, Heads)))
    return made


class Graph(nn.Module):
    """Attention, and beside it a network of each token with those that its heads look at; without edges, of each token
    alone."""

    def __init__(self, heads: Heads, edges: bool = True) -> None:
        super().__init__()
        self.edges = edges
        self.heads, self.eps, self.scale = heads, nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor(0.1))
        self.inside, self.outside = linear(WIDTH, HIDDEN), linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, WIDTH]` -> as `x`."""
        q, k, v = self.heads.split(x)
        scores = turned(q) @ turned(k).mT / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~self.heads.seen(x.shape[1]), -torch.inf).softmax(-1)
        edges = weights.mean(1)
        node = (1 + self.eps) * x + (edges * (edges > LEAST) @ x if self.edges else 0)
        return self.heads.merged(weights @ v) + self.scale * self.outside(self.inside(node).relu())


class LowRank(nn.Module):
    """Attention whose queries and values are changed by matrices of low rank."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.down = nn.Parameter(torch.randn(2, WIDTH, RANK) / WIDTH**0.5)
        self.up = nn.Parameter(torch.zeros(2, RANK, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, WIDTH]` -> as `x`."""
        more = [split(x @ down @ up, HEADS) for down, up in zip(self.down, self.up, strict=True)]
        q, k, v = self.heads.split(x)
        read = attention(turned(q + more[0]), turned(k), v + more[1], self.heads.seen(x.shape[1]))
        return self.heads.merged(read)
