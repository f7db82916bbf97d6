"""An encoder learns sequences from a tree: it comes to exact inference by way of models of ever longer correlations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Seeds, Size, Steps, register
from headwise.theory.fitting import adam, generator
from headwise.theory.stack import Stack

LEVELS = 3  # of a tree, whose sequences have 2 ** LEVELS symbols
SYMBOLS = 4
LENGTH = 2**LEVELS
SHARPNESS = 2.0  # of the logarithms of a rule's chances
WIDTH, HEADS, RATE = 32, 2, 4e-3
HELD = 1000  # sequences that are asked about
MOMENTS = 24  # of training at which it is looked at


@dataclass(frozen=True)
class Tree:
    """A node of symbol a has the children b and c with chance rules [a, b, c]; roots are uniform.

    Filtered at a level, nodes of that level are drawn on their own, given the root, by the same chances each; below
    them all is as before. At level 0 nothing is filtered.
    """

    rules: Tensor

    @classmethod
    def drawn(cls, chance: torch.Generator) -> Tree:
        """Rules of random sharpness."""
        scores = SHARPNESS * torch.randn(SYMBOLS, SYMBOLS * SYMBOLS, generator=chance)
        return cls(scores.softmax(-1).unflatten(-1, (SYMBOLS, SYMBOLS)))

    def given_root(self, level: int) -> Tensor:
        """The chances [nodes of a level, root, symbol] of its nodes, each on its own."""
        found = [torch.eye(SYMBOLS)]
        for _ in range(level):
            found = [one @ side for one in found for side in (self.rules.sum(2), self.rules.sum(1))]
        return torch.stack(found)

    def texts(self, count: int, chance: torch.Generator, level: int = 0) -> tuple[Tensor, Tensor]:
        """Sequences [count, LENGTH] of a tree that is filtered at a level, and their roots [count]."""
        roots = torch.randint(0, SYMBOLS, (count,), generator=chance)
        nodes = torch.stack(
            [torch.multinomial(one[roots], 1, generator=chance)[:, 0] for one in self.given_root(level)], dim=1
        )
        for _ in range(level, LEVELS):
            both = torch.multinomial(self.rules.flatten(1)[nodes.flatten()], 1, generator=chance).view(count, -1)
            nodes = torch.stack((both // SYMBOLS, both % SYMBOLS), dim=-1).flatten(1)
        return nodes, roots

    def likelihood(self, texts: Tensor, level: int = 0) -> Tensor:
        """The chance of each text and root together, [count, SYMBOLS], by belief propagation from the leaves up."""
        up = F.one_hot(texts, SYMBOLS).float()
        for _ in range(level, LEVELS):
            left, right = up[:, ::2], up[:, 1::2]
            up = torch.einsum("abc,nib,nic->nia", self.rules, left, right)
        return torch.einsum("iax,nix->nia", self.given_root(level), up).prod(1) / SYMBOLS

    def root(self, texts: Tensor, level: int = 0) -> Tensor:
        """The chances of roots, given the text."""
        joint = self.likelihood(texts, level)
        return joint / joint.sum(-1, keepdim=True)

    def leaf(self, texts: Tensor, places: Tensor, level: int = 0) -> Tensor:
        """The chances of the symbol at one place of each text, given all others."""
        found = []
        for symbol in range(SYMBOLS):
            filled = texts.scatter(1, places[:, None], symbol)
            found.append(self.likelihood(filled, level).sum(-1))
        joint = torch.stack(found, dim=-1)
        return joint / joint.sum(-1, keepdim=True)


class Encoder(nn.Module):
    """As many layers of attention in both directions as the tree has levels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS + 1, WIDTH)
        self.stack = Stack(LENGTH, LEVELS, HEADS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, texts: Tensor, places: Tensor | None = None) -> Tensor:
        """Logits [count, SYMBOLS] of the root, or of the symbol at `places [count]`, which are hidden from it."""
        if places is not None:
            texts = texts.scatter(1, places[:, None], SYMBOLS)
        x, _ = self.stack(self.embed(texts))
        logits: Tensor = self.head(self.norm(x.mean(1) if places is None else x[torch.arange(len(x)), places]))
        return logits


@register("hierarchy")
@dataclass(frozen=True, kw_only=True)
class Hierarchy(Experiment):
    """Trains small encoders to tell the root of a random tree's sequences, and a symbol that is hidden.

    steps, batch: of training, on sequences that never come twice.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Hierarchical filtering of tree data",
        statement="An encoder that is trained to tell the root, or a hidden symbol, of sequences from a tree comes to "
        "the accuracy of belief propagation; on the way its predictions are nearest to those of trees that are "
        "filtered less and less; and later layers attend to larger blocks",
        paper="How Transformers Learn Structured Data: Insights From Hierarchical Filtering, arXiv 2408.15138, "
        "sections 2 (the filtered model), 3 (climbing the hierarchy in time) and 4 (how inference is embedded)",
        setting="4 levels, 16 leaves, 4 symbols, an encoder of 4 layers and width 128, up to 2 ** 17 sequences",
        seconds=60,
        systems=(235,),
        differs="3 levels and 8 leaves; rules are drawn by a softmax of normal scores; sequences never come twice; how "
        "far attention goes is told by its mean distance in the tree, in levels, and not by probes of ancestors",
        leaves_out="probes of what each layer holds of the ancestors",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("accuracy of belief propagation less the encoder's, on roots", "short", "short_filtered",
             "belief propagation on the most filtered tree", below=0.02),
        Part("divergence of the encoder's hidden symbols from belief propagation, nats", "hidden", "hidden_filtered",
             "belief propagation on the most filtered tree", below=0.02),
        Part("steps until nearest to a tree over steps until nearest to the next more filtered "
             "one, logarithm, least", "order", "order_filtered",
             "trained on sequences of the most filtered tree", above=0.0),
        Part("rise of attention's mean distance in the tree from one layer to the next, levels, "
             "least", "wider", "wider_untrained", "before training", above=0.0),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "divergence of predictions from belief propagation": Panel("steps", "nats", "xy"),
        "distance of attention": Panel("layer", "levels up the tree"),
    }
    seeds: Seeds = 3

    steps: Steps = 1500
    batch: Size = 128

    def draw(self, seed: int) -> dict[str, Any]:
        """All figures of one seed."""
        chance = generator(self.name, seed)
        tree = Tree.drawn(chance)
        held, roots = tree.texts(HELD, chance)
        places = torch.randint(0, LENGTH, (HELD,), generator=chance)
        before = levels_up(self.encoder(seed), held)
        encoder, course = self.told_roots(tree, seed, chance, held)
        _, filtered = self.told_roots(tree, seed, chance, held, level=LEVELS)
        hidden = self.told_hidden(tree, seed, chance)
        after = levels_up(encoder, held)
        with torch.no_grad():
            guess = hidden(held, places).log_softmax(-1)
            right = (encoder(held).argmax(-1) == roots).float().mean()
        exact, poor = (tree.leaf(held, places, level) for level in (0, LEVELS))
        best = [float((tree.root(held, level).argmax(-1) == roots).float().mean()) for level in (0, LEVELS)]
        return {
            "measures": {
                "short": best[0] - float(right),
                "short_filtered": best[0] - best[1],
                "hidden": divergence(exact, guess),
                "hidden_filtered": divergence(exact, poor.log()),
                "order": least_ratio(course),
                "order_filtered": least_ratio(filtered),
                "wider": min(b - a for a, b in pairwise(after)),
                "wider_untrained": min(b - a for a, b in pairwise(before)),
                "accuracy": float(right),
            },
            "lines": {
                "divergence of predictions from belief propagation": {
                    f"filtered at level {level}" if level else "not filtered": line for level, line in enumerate(course)
                },
                "distance of attention": {
                    name: [[place + 1, one] for place, one in enumerate(line)]
                    for name, line in (("trained", after), ("untrained", before))
                },
            },
        }

    def encoder(self, seed: int) -> Encoder:
        """An untrained one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Encoder()

    def told_roots(
        self, tree: Tree, seed: int, chance: torch.Generator, held: Tensor, level: int = 0
    ) -> tuple[Encoder, list[list[list[float]]]]:
        """An encoder trained on roots; and by level of filtering, points [step, divergence of predictions on held
        sequences]."""
        encoder = self.encoder(seed)
        known = [tree.root(held, one) for one in range(LEVELS + 1)]
        course: list[list[list[float]]] = [[] for _ in known]
        moments = {round(self.steps ** (one / MOMENTS)) for one in range(MOMENTS + 1)}
        step = 0

        def loss() -> Tensor:
            nonlocal step
            step += 1
            if step in moments:
                with torch.no_grad():
                    guess = encoder(held).log_softmax(-1)
                for line, one in zip(course, known, strict=True):
                    line.append([step, divergence(one, guess)])
            texts, roots = tree.texts(self.batch, chance, level)
            return F.cross_entropy(encoder(texts), roots)

        adam(list(encoder.parameters()), loss, self.steps, RATE)
        return encoder, course

    def told_hidden(self, tree: Tree, seed: int, chance: torch.Generator) -> Encoder:
        """An encoder trained to tell the symbol at a place that is hidden."""
        encoder = self.encoder(seed)

        def loss() -> Tensor:
            texts, _ = tree.texts(self.batch, chance)
            places = torch.randint(0, LENGTH, (self.batch,), generator=chance)
            return F.cross_entropy(encoder(texts, places), texts.gather(1, places[:, None])[:, 0])

        adam(list(encoder.parameters()), loss, self.steps, RATE)
        return encoder


def divergence(exact: Tensor, guess: Tensor) -> float:
    """The mean divergence of log chances `guess` from chances `exact`, nats."""
    exact = exact.clamp_min(1e-12)
    return float((exact * (exact.log() - guess.clamp_min(-30))).sum(-1).mean())


def least_ratio(course: list[list[list[float]]]) -> float:
    """Of lines by level of filtering: the least logarithm of the step at which one is lowest over that of the line of
    the next more filtered tree."""
    nearest = [min(line, key=lambda point: point[1])[0] for line in course]
    return min(math.log(less / more) for less, more in pairwise(nearest))


@torch.no_grad()
def levels_up(encoder: Encoder, texts: Tensor) -> list[float]:
    """By layer, how many levels up the first common ancestor of a token and what it attends to is, in the mean."""
    leaves = torch.arange(LENGTH)
    apart = leaves[:, None] ^ leaves
    levels = torch.where(apart > 0, apart.clamp_min(1).float().log2().floor() + 1, 0.0)
    return [float((one * levels).sum(-1).mean()) for one in encoder.stack(encoder.embed(texts))[1]]
