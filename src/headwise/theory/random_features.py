"""Attention with frozen random queries and keys as a kernel method over sets of keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, register
from headwise.knobs import PositiveWeight
from headwise.theory.fitting import generator

TESTED = 1000  # inputs that errors are measured on
LEARNED = 0.5  # share of the target's variance that is left where it counts as learned
Inputs = tuple[torch.Tensor, torch.Tensor]  # queries [inputs, dim], keys [inputs, n, dim], on the sphere
Features = Callable[[Inputs], torch.Tensor]  # [inputs, features]


@register("random_features")
@dataclass(frozen=True, kw_only=True)
class RandomFeatures(Experiment):
    """Fits the values of random attention heads, and the output of a random network, to functions of a query and keys.

    dim: of query and keys. keys: of an input. heads: of the layer; the network gets as many neurons as that layer has
    values. samples: the most it is fitted on. ridge: of the regression. shift: of the mean query-key weight, a
    multiple of the identity.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Attention as random features",
        statement="Attention with many heads of frozen random query-key weights and fitted values learns functions "
        "that do not change when keys change places, from fewer samples than random features of the whole input; "
        "weights around a multiple of the identity learn functions of the product of query and key from fewer",
        paper="What can a Single Attention Layer Learn? A Study Through the Random Features Lens, arXiv 2307.11353, "
        "sections 3 (expressivity and samples), 4 (biased weights) and 5 (simulations)",
        setting="ReLU of the query-key product in place of softmax, inputs on the sphere of 16 dimensions, 16 keys, "
        "1000 heads, targets that are means of powers over keys",
        seconds=60,
        systems=(19,),
        differs="6 dimensions, 6 keys and 300 heads; the target of means over keys is (k.b)^2, that of query and key "
        "(q.k)^3; one ridge, a share of the features' mean square, serves all, which shifted weights, whose heads have "
        "much in common, may need smaller",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("error with all heads over error with a sixteenth of them", "by_heads", "by_heads_first",
             "a target that depends on the first key alone", below=0.8),
        Part("error with all samples over error with a sixteenth of them", "by_samples", "by_samples_first",
             "a target that depends on the first key alone", below=0.8),
        Part("largest change of the output as keys change places, relative", "permuted", "permuted_network",
             "random features of the whole input", below=1e-6),
        Part("samples to learn a mean over keys, over those of random features of the whole input", "needed",
             "needed_first", "a target that depends on the first key alone", below=1.0),
        Part("error on a target of q.k with shifted weights over that without", "shifted", "shifted_other",
             "a target that the query has no part in", below=0.8),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "a mean over keys": Panel("samples", "error, share of the variance", "xy"),
        "a target of query and key": Panel("samples", "error, share of the variance", "xy"),
    }

    dim: Size = 6
    keys: Size = 6
    heads: Annotated[int, Ge(32), Le(2000)] = 300
    samples: Annotated[int, Ge(128), Le(4096)] = 1024
    ridge: PositiveWeight = 1e-3
    shift: PositiveWeight = 5.0

    def draw(self, seed: int) -> dict[str, Any]:
        """Errors of the layer, with and without a shift, and of the network, by heads and samples."""
        chance = generator(self.name, seed)
        train, test = (self.inputs(count, chance) for count in (self.samples, TESTED))
        direction = sphere((self.dim,), chance)
        targets: dict[str, Callable[[Inputs], torch.Tensor]] = {
            "mean": lambda inputs: (inputs[1] @ direction).square().mean(-1),
            "first": lambda inputs: inputs[1][:, 0] @ direction,
            "product": lambda inputs: (inputs[1] @ inputs[0][..., None])[..., 0].pow(3).mean(-1),
        }
        shape = (self.heads, self.dim + 1, self.dim + 1)
        weights = torch.randn(shape, generator=chance, dtype=torch.float64) / 2
        identity = torch.eye(self.dim + 1, dtype=torch.float64)
        identity[-1, -1] = 0
        layer, shifted = attention_features(weights), attention_features(weights + self.shift * identity)
        network = network_features(self, chance)
        few = attention_features(weights[: self.heads // 16])
        counts = [self.samples >> halvings for halvings in range(6, -1, -1)]

        def errors(features: Features, target: str) -> list[list[float]]:
            made, tested = features(train), features(test)
            wanted, told = targets[target](train), targets[target](test)
            return [[float(n), self.error(made[:n], wanted[:n], tested, told)] for n in counts]

        found = {target: errors(layer, target) for target in targets}
        plain = {target: errors(network, target) for target in targets}
        less = {target: errors(few, target)[-1][1] for target in ("mean", "first")}
        biased = {target: errors(shifted, target) for target in ("mean", "product")}
        last = {target: line[-1][1] for target, line in found.items()}
        moved = test[0], test[1][:, torch.randperm(self.keys, generator=chance)]
        return {
            "measures": {
                "by_heads": last["mean"] / less["mean"],
                "by_heads_first": last["first"] / less["first"],
                "by_samples": last["mean"] / found["mean"][2][1],
                "by_samples_first": last["first"] / found["first"][2][1],
                "permuted": changed(layer, test, moved),
                "permuted_network": changed(network, test, moved),
                "needed": needed(found["mean"]) / needed(plain["mean"]),
                "needed_first": needed(found["first"]) / needed(plain["first"]),
                "shifted": biased["product"][-1][1] / last["product"],
                "shifted_other": biased["mean"][-1][1] / last["mean"],
            },
            "lines": {
                "a mean over keys": {"random attention": found["mean"], "random network": plain["mean"]},
                "a target of query and key": {"around 0": found["product"], "around the identity": biased["product"]},
            },
        }

    def inputs(self, count: int, chance: torch.Generator) -> Inputs:
        """Queries and keys on the sphere."""
        return sphere((count, self.dim), chance), sphere((count, self.keys, self.dim), chance)

    def error(self, made: torch.Tensor, wanted: torch.Tensor, tested: torch.Tensor, told: torch.Tensor) -> float:
        """Of ridge regression, by its dual, on other inputs, as a share of the target's variance."""
        mean, scale = wanted.mean(), made.square().sum(-1).mean()
        gram = made @ made.T / scale
        ridge = self.ridge * torch.eye(len(made), dtype=made.dtype)
        fitted = torch.linalg.solve(gram + ridge, wanted - mean)
        found = tested @ (made.T @ fitted) / scale + mean
        return float((found - told).square().mean() / told.var())


def sphere(shape: tuple[int, ...], chance: torch.Generator) -> torch.Tensor:
    """Unit vectors along the last dimension."""
    drawn = torch.randn(shape, generator=chance, dtype=torch.float64)
    return drawn / drawn.norm(dim=-1, keepdim=True)


def attention_features(weights: torch.Tensor) -> Features:
    """What is linear in the values of heads with these query-key weights [heads, dim + 1, dim + 1]: the mean over
    keys of ReLU of the score, times the key. Query and key have a channel of ones."""

    def features(inputs: Inputs) -> torch.Tensor:
        queries, keys = (torch.cat([one, torch.ones_like(one[..., :1])], dim=-1) for one in inputs)
        scores = torch.relu(torch.einsum("nd,ide->nie", queries, weights) @ keys.transpose(1, 2))
        return (scores @ keys).flatten(1) / keys.shape[1]

    return features


def network_features(knobs: RandomFeatures, chance: torch.Generator) -> Features:
    """ReLU of random projections of query and keys one after the other, and of a constant."""
    width = knobs.dim * (knobs.keys + 1) + 1
    weights = torch.randn(width, knobs.heads * (knobs.dim + 1), generator=chance, dtype=torch.float64)

    def features(inputs: Inputs) -> torch.Tensor:
        whole = torch.cat([inputs[0][:, None], inputs[1]], dim=1).flatten(1)
        return torch.relu(torch.cat([whole, torch.ones_like(whole[:, :1])], dim=-1) @ weights)

    return features


def changed(features: Features, inputs: Inputs, moved: Inputs) -> float:
    """The largest change of any feature, over the largest feature: no output of fitted values changes by more."""
    before = features(inputs)
    return float((features(moved) - before).abs().max() / before.abs().max())


def needed(line: list[list[float]]) -> float:
    """Samples at which the error falls to what counts as learned, between two points by their logarithms; twice the
    most where it never does."""
    for (few, above), (many, below) in pairwise(line):
        if below <= LEARNED < above:
            share = torch.tensor([above / LEARNED, above / below]).log()
            return float(few * (many / few) ** float(share[0] / share[1]))
    return line[0][0] if line[0][1] <= LEARNED else 2 * line[-1][0]
