"""Copies of a small model that were trained apart become the experts of one, in its attention as well."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headwise.experiments import Experiment, ExperimentCard, Part, Size, Steps, register
from headwise.layers.projections import linear, merged, split
from headwise.layers.routing import Router, chosen
from headwise.theory.decoder import attention, seeded, turned
from headwise.theory.fitting import adam, generator
from headwise.theory.pieces import COUNT, drawn, held
from headwise.theory.writer import BYTES, RATE, ROWS, TOKENS, WIDTH, loss_of

HEADS, LAYERS, DOMAINS, TOP = 4, 2, 3, 2  # TOP: feed-forward experts of a token
KINDS = ("own", "shared", "averaged", "alike")


@register("expert_mixture")
@dataclass(frozen=True, kw_only=True)
class ExpertMixture(Experiment):
    """The novel's bytes as they are, backwards, and with other letters: a seed model of all three, a copy that goes on
    with each, and mixtures of these copies that go on with all.

    steps: of the seed model. apart: of a copy. together: of a mixture. texts: held pieces that
    are read of each domain.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="BAM",
        statement="Copies become experts of feed-forward layers, of which a token uses two, and of attention, all of "
        "which it uses: of identical copies the mixture is the seed model, with shared keys and values it caches what "
        "one expert caches, and after equal training its loss over domains is below that of a mixture whose attention "
        "is averaged",
        paper="BAM! Just Like That: Simple and Efficient Parameter Upcycling for Mixture of Experts, arXiv 2408.08274, "
        "section 3",
        setting="a seed of 590 million and of 2 billion parameters, code, law and mathematics",
        seconds=400,
        systems=(9,),
        differs="no released code; experts have keys and values of their own or not, where those of `mixed_experts` "
        "are heads of one projection; two layers of 64 channels, no seed among the experts, no balance of load, and "
        "domains that are one novel, its bytes backwards, and its letters exchanged",
        leaves_out="domains of people, and the variant with a wider top-k of equal computation",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("logits of a mixture of identical copies beside the seed model's, largest difference", "identical",
             "identical_apart", "copies that were trained apart", below=1e-5),
        Part("cache of experts with shared keys and values over that of one expert", "cache", "cache_own",
             "keys and values of their own", below=1.0 + 1e-9),
        Part("mean loss over domains less that of as many experts of averaged attention, nats", "own", "averaged",
             "one averaged attention, feed-forward experts alone", below=0.0),
        Part("the same with shared keys and values, nats", "shared", "averaged",
             "one averaged attention, feed-forward experts alone", below=0.0),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("identical", "cache")

    steps: Steps = 600
    apart: Steps = 400
    together: Steps = 300
    texts: Size = COUNT

    def draw(self, seed: int) -> dict[str, Any]:
        """Losses of mixtures of the same copies."""
        letters = exchanged(generator(f"{self.name}/letters", seed))
        begun = seeded(seed, lambda: Model(1))
        self.taught(begun, range(DOMAINS), letters, seed, self.steps)
        copies = [deepcopy(begun) for _ in range(DOMAINS)]
        for domain, copy in enumerate(copies):
            self.taught(copy, [domain], letters, seed + 1000, self.apart)
        mixtures = {kind: seeded(seed, partial(mixed, copies, kind)) for kind in KINDS}
        with torch.no_grad():
            ids = held(TOKENS)[:8, :-1]
            same = seeded(seed, lambda: mixed([begun] * DOMAINS, "own"))
            gaps = {name: float((one(ids) - begun(ids)).abs().max())
                    for name, one in (("identical", same), ("identical_apart", mixtures["own"]))}  # fmt: skip
        for model in mixtures.values():
            self.taught(model, range(DOMAINS), letters, seed + 2000, self.together)
        lost = {kind: self.lost(model, letters) for kind, model in mixtures.items()}
        return {"measures": {
            **gaps, "cache": mixtures["shared"].cached / begun.cached,
            "cache_own": mixtures["own"].cached / begun.cached,
            **{kind: lost[kind] - lost["alike"] for kind in ("own", "shared", "averaged")},
            **{f"loss_{kind}": one for kind, one in lost.items()}, "loss_begun": self.lost(begun, letters),
        }}  # fmt: skip

    def taught(self, model: Model, domains: Sequence[int], letters: Tensor, seed: int, steps: int) -> None:
        """Trains on pieces of these domains, as many of each."""
        chance = generator(self.name, seed)

        def loss() -> Tensor:
            pieces = drawn(ROWS, TOKENS, chance)
            parts = [said(pieces[place :: len(domains)], one, letters) for place, one in enumerate(domains)]
            return loss_of(model, torch.cat(parts))

        adam([*model.parameters()], loss, steps, RATE)

    @torch.no_grad()
    def lost(self, model: Model, letters: Tensor) -> float:
        """The mean held-out loss over domains, nats."""
        return (
            sum(float(loss_of(model, said(held(TOKENS)[: self.texts], domain, letters))) for domain in range(DOMAINS))
            / DOMAINS
        )


def exchanged(chance: torch.Generator) -> Tensor:
    """What each byte becomes where letters are exchanged, [BYTES]."""
    table, small = torch.arange(BYTES), torch.arange(ord("a"), ord("z") + 1)
    table[small] = small[torch.randperm(len(small), generator=chance)]
    return table


def said(pieces: Tensor, domain: int, letters: Tensor) -> Tensor:
    """Pieces as they are, backwards, or with other letters."""
    return (pieces, pieces.flip(-1), letters[pieces])[domain]


class Expert(nn.Module):
    """Queries and the output of one attention; keys and values too, unless others' are given."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = linear(WIDTH, WIDTH), linear(WIDTH, 2 * WIDTH), linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, kv: Tensor) -> Tensor:
        """`x [batch, tokens, WIDTH]` -> as `x`; kv [batch, tokens, 2 WIDTH]."""
        q, k, v = (split(one, HEADS) for one in (self.q(x), *kv.chunk(2, -1)))
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        made: Tensor = self.out(merged(attention(turned(q), turned(k), v, seen)))
        return made


class Mixture(nn.Module):
    """A parallel block: attention experts, all mixed, beside feed-forward experts, the best mixed, on the same norm."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.norm, self.shared = nn.LayerNorm(WIDTH), False
        self.reads = nn.ModuleList(Expert() for _ in range(experts))
        self.wide = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)) for _ in range(experts)
        )
        self.reader, self.feeder = (Router(WIDTH, experts, TOP) for _ in range(2))

    @property
    def experts(self) -> list[Expert]:
        """Those of attention."""
        return [one for one in self.reads if isinstance(one, Expert)]

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, tokens, WIDTH]` after the block."""
        normed = self.norm(x)
        first = self.experts[0].kv(normed)
        read = torch.stack([one(normed, first if self.shared else one.kv(normed)) for one in self.experts], -1)
        shares = self.reader(normed)[..., : len(self.reads)]
        best = chosen(self.feeder(normed), TOP) if len(self.wide) > 1 else self.feeder(normed)
        fed = torch.stack([one(normed) for one in self.wide], -1)
        return x + weighed(read, shares) + weighed(fed, best)


def weighed(made: Tensor, shares: Tensor) -> Tensor:
    """The mean of `made [..., width, experts]` by `shares [..., experts]`."""
    return (made @ (shares / shares.sum(-1, keepdim=True))[..., None])[..., 0]


class Model(nn.Module):
    """A language model of such blocks."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(BYTES, WIDTH), linear(WIDTH, BYTES)
        self.blocks, self.norm = nn.ModuleList(Mixture(experts) for _ in range(LAYERS)), nn.LayerNorm(WIDTH)

    @property
    def cached(self) -> int:
        """Numbers that are kept of a token."""
        return sum(2 * WIDTH * (1 if block.shared else len(block.reads)) for block in self.layers)

    @property
    def layers(self) -> list[Mixture]:
        """Its blocks."""
        return [one for one in self.blocks if isinstance(one, Mixture)]

    def forward(self, ids: Tensor) -> Tensor:
        """`ids [batch, tokens]` -> logits [batch, tokens, BYTES]."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@torch.no_grad()
def mixed(copies: Sequence[Model], kind: str) -> Model:
    """The copies as experts. kind: of attention, with their "own" keys and values; with "shared" ones, the mean of
    all; one "averaged" attention; or as many experts that are all "alike", averaged."""
    made = Model(len(copies))
    mean = averaged(copies)
    for name in ("embed", "head", "norm"):
        getattr(made, name).load_state_dict(getattr(mean, name).state_dict())
    for place, block in enumerate(made.layers):
        one = mean.layers[place]
        block.norm.load_state_dict(one.norm.state_dict())
        for expert, copy in enumerate(copies):
            own = copy.layers[place]
            block.wide[expert].load_state_dict(own.wide[0].state_dict())
            source = one if kind in ("averaged", "alike") else own
            block.experts[expert].load_state_dict(source.experts[0].state_dict())
            if kind == "shared":
                block.experts[expert].kv.load_state_dict(one.experts[0].kv.state_dict())
        block.shared = kind == "shared"
        if kind == "averaged":
            block.reads = block.reads[:1]
    return made


def averaged(copies: Sequence[Model]) -> Model:
    """The mean of all weights."""
    made, all_of = Model(1), [copy.state_dict() for copy in copies]
    made.load_state_dict({name: torch.stack([one[name] for one in all_of]).mean(0) for name in all_of[0]})
    return made
