"""A learned operator of waves in the place of the softmax over each row of scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headwise.experiments import Experiment, ExperimentCard, Part, Seeds, Size, Steps, register
from headwise.layers.projections import linear, merged, split
from headwise.theory.decoder import seeded
from headwise.theory.fitting import adam, generator
from headwise.theory.lookup import WIDTH, Encoder, Lookup

PATCHES, HEADS, WAVES = 16, 4, 1  # scores of a row; of an operator's series
WIDE, RATES = 64, (2e-3, 5e-3)  # channels of a wider operator; of training encoders
FITTED, ROWS, RATE = 1024, 128, 1e-2  # pictures that an operator is fitted on, of a step, and its rate
LONGER = 2 * PATCHES


@register("score_operator")
@dataclass(frozen=True, kw_only=True)
class ScoreOperator(Experiment):
    """Encoders of drawn pictures, one patch of which asks what another shows, whose rows of scores pass a learned
    operator; and operators that are fitted to the softmax of a trained encoder's scores.

    steps: of training. fitting: of an operator alone. hidden: its channels.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Kolmogorov-Arnold attention",
        statement="Fourier series of a row's scores, summed into 12 channels and mapped back, fitted to the softmax, "
        "are its attention within 5 %; their parameters grow with the row, not its square; and in the softmax's place "
        "they train to within 2 points of it",
        paper="Kolmogorov-Arnold Attention: Is Learnable Attention Better For Vision Transformers?, arXiv 2503.10632, "
        "section 3",
        setting="ViT-Tiny to ViT-Base of 197 patches, CIFAR-10, CIFAR-100 and ImageNet",
        seconds=450,
        systems=(67,),
        differs="written from the row's own words, not beside its code; places are fixed, where `kolmogorov` counts "
        "distances, as a text has no last place; rows of 16 scores, an operator a head, one "
        "frequency, no projection onto a simplex, and a learned vector of even weights beside them",
        leaves_out="photographs, operators that layers share, and the projection onto the simplex",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("error of what a fitted operator reads beside the softmax, on held pictures, of its length", "error",
             "error_even", "equal weights of all patches", below=0.05),
        Part("parameters for rows twice as long, over those for the row", "growth", "growth_square",
             "series from every score to every weight", below=2.1),
        Part("right answers more than of the softmax, share", "right", "right_linear",
             "as many channels of the scores themselves", above=-0.02),
        Part("right answers more than of the softmax by 64 channels, share", "wide", "wide_linear",
             "as many channels of the scores themselves", above=-0.02),
        Part("the same, by 64 channels, beside equal weights", "wide", "even",
             "equal weights of all patches", above=-0.02),
    )  # fmt: skip
    built: ClassVar[tuple[str, ...]] = ("growth",)

    steps: Steps = 3000
    fitting: Steps = 3000
    hidden: Size = 12
    seeds: Seeds = 3

    def draw(self, seed: int) -> dict[str, Any]:
        """Errors of fitted operators, parameters, and right answers."""
        task = Lookup(PATCHES, 1, self.steps, RATES)
        sides: dict[str, Callable[[], nn.Module]] = {
            "right": lambda: Weighed(Operator(PATCHES, self.hidden)),
            "right_linear": lambda: Weighed(Operator(PATCHES, self.hidden, waves=0)),
            "wide": lambda: Weighed(Operator(PATCHES, WIDE)),
            "wide_linear": lambda: Weighed(Operator(PATCHES, WIDE, waves=0)),
            "even": lambda: Weighed(Even()),
            "softmax": Weighed,
        }
        ends = {name: task.right_answers(make, self.name, seed) for name, make in sides.items()}
        softmax, taught = ends.pop("softmax")
        square = PATCHES**2 * 2 * WAVES
        return {"measures": {
            **{name: right - softmax for name, (right, _) in ends.items()}, "right_softmax": softmax,
            "growth": size(LONGER, self.hidden) / size(PATCHES, self.hidden),
            "growth_square": LONGER**2 * 2 * WAVES / square,
            **self.errors(taught, task, seed),
        }}  # fmt: skip

    def errors(self, model: Encoder, task: Lookup, seed: int) -> dict[str, float]:
        """How far what fitted operators read is from what the trained encoder reads, beside equal weights."""
        layer = model.reads
        assert isinstance(layer, Weighed)
        looks, chance = task.looks(generator(f"{self.name}/kinds", seed)), generator(f"{self.name}/fit", seed)
        with torch.no_grad():
            rows, held = (model.given(task.pictures(FITTED, looks, chance)[0]) for _ in range(2))
            scores, others = layer.scores(rows), layer.scores(held)
            values = split(layer.v(held), HEADS)
        operator = seeded(seed, lambda: Operator(PATCHES, self.hidden))

        def loss() -> Tensor:
            few = scores[torch.randint(FITTED, (ROWS,), generator=chance)]
            return (operator(few) - few.softmax(-1)).square().sum(-1).mean()

        adam([*operator.parameters()], loss, self.fitting, RATE)
        with torch.no_grad():
            wanted = others.softmax(-1) @ values
            return {
                name: float((weigh(others) @ values - wanted).norm() / wanted.norm())
                for name, weigh in (("error", operator), ("error_even", Even()))
            }


class Operator(nn.Module):
    """Fourier series of each score, summed into hidden channels, and a linear map back to as many weights, a head each;
    where there are no waves, the scores themselves in the place of their series."""

    def __init__(self, count: int, hidden: int, waves: int = WAVES) -> None:
        super().__init__()
        self.waves = waves
        inside = count * max(1, 2 * waves)
        self.inside = nn.Parameter(torch.randn(HEADS, inside, hidden) / inside**0.5)
        self.outside = nn.Parameter(torch.randn(HEADS, hidden, count) / hidden**0.5 / count)
        self.even = nn.Parameter(torch.full((HEADS, 1, count), 1 / count))

    def forward(self, scores: Tensor) -> Tensor:
        """`scores [n, HEADS, queries, count]` -> weights of that shape."""
        if self.waves:
            turned = scores[..., None] * torch.arange(1, self.waves + 1)
            scores = torch.cat((turned.cos(), turned.sin()), -1).flatten(-2)
        return scores @ self.inside @ self.outside + self.even


class Even(nn.Module):
    """Equal weights."""

    def forward(self, scores: Tensor) -> Tensor:
        """Of that shape."""
        return torch.full_like(scores, 1 / scores.shape[-1])


class Weighed(nn.Module):
    """Attention in both directions whose weights `weigh` makes of its scores; None is the softmax."""

    def __init__(self, weigh: nn.Module | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (linear(WIDTH, WIDTH) for _ in range(4))
        self.weigh = weigh or nn.Softmax(-1)

    def scores(self, x: Tensor) -> Tensor:
        """`x [n, PATCHES, WIDTH]` -> [n, HEADS, PATCHES, PATCHES]."""
        q, k = (split(one, HEADS) for one in (self.q(x), self.k(x)))
        return q @ k.mT / q.shape[-1] ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        """`x [n, PATCHES, WIDTH]` -> as `x`."""
        made: Tensor = self.out(merged(self.weigh(self.scores(x)) @ split(self.v(x), HEADS)))
        return made


def size(count: int, hidden: int) -> int:
    """Numbers of an operator on rows of `count` scores."""
    return sum(one.numel() for one in Operator(count, hidden).parameters())
