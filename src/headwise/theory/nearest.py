"""One head of full rank finds the nearest neighbour, where several of low rank do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, Steps, register
from headwise.theory.fitting import adam, generator

SHARP = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)  # factors of the scores of the head that is built
TESTED = 4000
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@register("nearest_neighbour")
@dataclass(frozen=True, kw_only=True)
class NearestNeighbour(Experiment):
    """Returns the vector of a context that is nearest to a query, all of them on the sphere.

    dim: of vectors. points: of a context. heads: of low rank, each of rank dim / heads. steps, batch: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="The benefit of rank",
        statement="One head of full rank, softmax of a sharp multiple of the products, gives the nearest neighbour of "
        "a query at any context length; heads of low rank with as many query-key parameters do not",
        paper="On the Benefits of Rank in Attention Layers, arXiv 2407.16153, sections 4 (separation) and 7 "
        "(experiments)",
        setting="points and query uniform on the sphere; transformers of several layers trained with 64 dimensions and "
        "16 points",
        seconds=30,
        systems=(185,),
        differs="16 dimensions, 8 points, one layer without a network behind it; every head has a whole matrix of its "
        "own for values, so that heads of low rank have more parameters",
        leaves_out="that depth makes up for rank in short contexts",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("squared error of one head of full rank with the sharpest scores", "built", "built_low",
             "one head of as sharp scores that sees a part of the channels", below=0.01),
        Part("error of trained heads of low rank over that of one trained head of full rank", "ratio", "ratio_again",
             "the head of full rank, trained from another start", above=5.0),
        Part("the same in contexts four times as long", "ratio_long", "ratio_long_again",
             "the head of full rank, trained from another start", above=5.0),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "one head that is built": Panel("factor of the scores", "squared error", "xy")
    }

    dim: Size = 16
    points: Size = 8
    heads: Annotated[int, Ge(2), Le(16)] = 4
    steps: Steps = 800
    batch: Size = 128

    def conflict(self) -> str | None:
        """Every head of low rank has as many channels."""
        if self.dim % self.heads:
            return f"dim = {self.dim} is no multiple of heads = {self.heads}; give one that is"
        return None

    def draw(self, seed: int) -> dict[str, Any]:
        """Errors of heads that are built and of those that are trained."""
        chance = generator(self.name, seed)
        test = self.contexts(TESTED, self.points, chance)
        rank = self.dim // self.heads
        some = torch.zeros(self.dim)
        some[torch.randperm(self.dim, generator=chance)[:rank]] = self.dim / rank
        whole = torch.ones(self.dim)
        built = {name: [[factor, error(sharp(factor * seen), test)] for factor in SHARP]
                 for name, seen in {"full rank": whole, "low rank": some}.items()}  # fmt: skip
        measures = {"built": built["full rank"][-1][1], "built_low": built["low rank"][-1][1]}
        for name, points in (("ratio", self.points), ("ratio_long", 4 * self.points)):
            tested = self.contexts(TESTED, points, chance)
            full, again, low = (error(self.trained(heads, self.dim // heads, points, chance), tested)
                                for heads in (1, 1, self.heads))  # fmt: skip
            measures |= {name: low / full, f"{name}_again": again / full, f"{name}_full_error": full}
        return {"measures": measures, "lines": {"one head that is built": built}}

    def contexts(self, count: int, points: int, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Points [contexts, n, dim] and queries [contexts, dim]."""
        drawn = torch.randn(count, points + 1, self.dim, generator=chance)
        drawn = drawn / drawn.norm(dim=-1, keepdim=True)
        return drawn[:, :-1], drawn[:, -1]

    def trained(self, heads: int, rank: int, points: int, chance: torch.Generator) -> Predict:
        """Heads of this rank by Adam, on contexts of so many points."""
        queries, keys = (
            (torch.randn(heads, self.dim, rank, generator=chance) / rank**0.5).requires_grad_() for _ in range(2)
        )
        values = (torch.randn(heads, self.dim, self.dim, generator=chance) / self.dim).requires_grad_()

        def predict(context: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
            toward = torch.einsum("hdr,cd,her->che", queries, query, keys)
            weights = torch.softmax(toward @ context.transpose(1, 2), dim=-1)
            return torch.einsum("chd,hde->ce", weights @ context, values)

        def loss() -> torch.Tensor:
            context = self.contexts(self.batch, points, chance)
            return (predict(*context) - wanted(*context)).square().sum(-1).mean()

        adam([queries, keys, values], loss, self.steps, 0.02)
        return predict


def sharp(factors: torch.Tensor) -> Predict:
    """One head whose scores are products over channels, each times its factor."""

    def predict(context: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax((context * (query * factors)[:, None]).sum(-1), dim=-1)
        return (weights[..., None] * context).sum(1)

    return predict


def wanted(context: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The point [contexts, dim] of the largest product with the query."""
    best = (context @ query[..., None])[..., 0].argmax(-1)
    return context[torch.arange(len(context)), best]


def error(predict: Predict, test: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Mean squared distance from the nearest point."""
    with torch.no_grad():
        return float((predict(*test) - wanted(*test)).square().sum(-1).mean())
