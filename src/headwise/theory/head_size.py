"""A head narrower than the text is long cannot attend as it likes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, Steps, register
from headwise.theory.fitting import generator, minimised


@register("head_size")
@dataclass(frozen=True, kw_only=True)
class HeadSize(Experiment):
    """Fits the queries and keys of one head to random positive attention.

    tokens: length of the text. narrow: the width of the head that is too narrow. width: of the tokens' vectors.
    steps: of L-BFGS, at most.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="The low-rank bottleneck of a head",
        statement="A head at least as wide as the text is long produces any positive attention matrix of linearly "
        "independent tokens; a narrower one does not",
        paper="Low-Rank Bottleneck in Multi-head Attention Models, arXiv 2002.07028, Theorem 1 (section 3)",
        setting="any length n, head width at least or below n, tokens of rank n",
        seconds=20,
        systems=(224,),
        differs="the theorem's own weights are built beside those that are fitted; the head that is too narrow is the "
        "best of three starts",
        leaves_out="that a small language model with heads of a fixed width keeps up with a wider one",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("the weights of the theorem's proof give the matrix", "built", "built_dependent",
             "the same construction on tokens that are linearly dependent", below=1e-6),
        Part("a head as wide as the text is long is fitted to it, largest error", "wide", "wide_dependent",
             "the same head on tokens that are linearly dependent", below=1e-3),
        Part("a narrower head is not, largest "
        "error", "narrow", "wide", "the head as wide as the text is long", above=1e-2),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"largest error by width": Panel("width of the head", "largest error", "y")}

    tokens: Size = 32
    narrow: Size = 8
    width: Size = 48
    steps: Steps = 250

    def conflict(self) -> str | None:
        """Tokens of few channels are always dependent, and a head that is no narrower shows nothing."""
        if self.width < self.tokens:
            told = f"width = {self.width} cannot hold {self.tokens} independent tokens"
            return f"{told}; give a width of {self.tokens} or more"
        if self.narrow >= self.tokens:
            return f"narrow = {self.narrow} is not below tokens = {self.tokens}; give a smaller one"
        return None

    def draw(self, seed: int) -> dict[str, Any]:
        """Largest errors of the heads that are built and fitted."""
        chance = generator(self.name, seed)
        target = torch.empty(self.tokens, self.tokens, dtype=torch.float64).exponential_(generator=chance)
        target /= target.sum(-1, keepdim=True)
        inputs = torch.randn(self.tokens, self.width, generator=chance, dtype=torch.float64)
        half = self.tokens // 2
        dependent = torch.randn(self.tokens, half, generator=chance, dtype=torch.float64) @ inputs[:half]
        widths = sorted({self.narrow, (self.narrow + self.tokens) // 2, self.tokens})
        errors = {
            width: min(error(fitted(target, inputs, width, self.steps, chance), target)
                       for _ in range(3 if width == self.narrow else 1))
            for width in widths
        }  # fmt: skip
        return {
            "measures": {
                "built": error(built(target, inputs), target),
                "built_dependent": error(built(target, dependent), target),
                "wide": errors[self.tokens],
                "wide_dependent": error(fitted(target, dependent, self.tokens, self.steps, chance), target),
                "narrow": errors[self.narrow],
            },
            "lines": {"largest error by width": {"fitted": [[width, worst] for width, worst in errors.items()]}},
        }


def attention(inputs: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Softmax attention [n, n] of tokens [n, width] by weights [width, head width]."""
    return torch.softmax(inputs @ queries @ (inputs @ keys).T / queries.shape[1] ** 0.5, dim=-1)


def error(found: torch.Tensor, target: torch.Tensor) -> float:
    """The largest difference of any probability."""
    return float((found - target).abs().max())


def built(target: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The attention of the proof's weights: the tokens' pseudo-inverse on both sides of the matrix's logarithm."""
    inverse = torch.linalg.pinv(inputs)
    return attention(inputs, inverse @ target.log() * len(target) ** 0.5, inverse)


def fitted(target: torch.Tensor, inputs: torch.Tensor, width: int, steps: int, chance: torch.Generator) -> torch.Tensor:
    """The attention of weights that are fitted by cross-entropy from a random start."""
    weights = [
        (torch.randn(inputs.shape[1], width, generator=chance, dtype=torch.float64) / inputs.shape[1]).requires_grad_()
        for _ in range(2)
    ]
    minimised(weights, lambda: -(target * attention(inputs, *weights).log()).sum(-1).mean(), steps)
    with torch.no_grad():
        return attention(inputs, *weights)
