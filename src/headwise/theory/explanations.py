"""Attention weights beside what gradients and LIME say of the same classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, Size, register
from headwise.theory.fitting import generator

BANDWIDTH = 0.25  # of LIME's kernel over cosine distances, as its text explainer has it
ONE_TEXT = "one text by token: LIME, attention, gradient times input"
SAMPLES = (128, 512, 2048, 8192)


@dataclass(frozen=True)
class Classifier:
    """A classifier of one query: the mean over heads of what each reads of the tokens it attends to.

    keys, values: [heads, dim], the weights by which a token's vector becomes its score and what it adds to the logit.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def attention(self, tokens: torch.Tensor) -> torch.Tensor:
        """[..., heads, n] of tokens [..., n, dim]."""
        return torch.softmax(self.keys @ tokens.transpose(-1, -2), dim=-1)

    def logit(self, tokens: torch.Tensor) -> torch.Tensor:
        """[...] of tokens [..., n, dim]."""
        return (self.attention(tokens) * (self.values @ tokens.transpose(-1, -2))).sum(-1).mean(-1)


@register("explanations")
@dataclass(frozen=True, kw_only=True)
class Explanations(Experiment):
    """Explains random texts of random classifiers by attention, gradient, gradient times input and LIME.

    tokens: of a text. heads, dim: of the classifier. texts: how many are explained in a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Attention beside explanations after the fact",
        statement="For a classifier of one query and several heads, gradient and LIME have closed forms; they tell "
        "which tokens speak against the class, which attention weights cannot, and they rank tokens otherwise",
        paper="Attention Meets Post-hoc Interpretability: A Mathematical Perspective, arXiv 2402.03485, sections 2 to "
        "5",
        setting="one layer, several heads, the [CLS] query; LIME with words replaced by an unknown one",
        seconds=5,
        systems=(217,),
        differs="random weights, no positions; LIME's coefficients by the closed form of its weighted regression with "
        "the classifier's mean over all masks counted out, where the paper takes long texts and a wide kernel to the "
        "limit",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("the gradient's closed form is what autograd finds, relative difference", "gradient", "gradient_half",
             "the closed form without what the scores add", below=1e-5),
        Part("sampled LIME approaches its closed form as one over the root of the samples: how far the slope is from "
        "-1/2",
             "slope", "slope_attention", "how sampled LIME approaches the attention weights", below=0.1),
        Part("of tokens that lower the logit, the share that LIME gives a negative weight", "negative",
             "negative_attention", "attention weights", above=0.9),
        Part("texts whose first token by attention is not first by LIME, nor by gradient times input: the smaller "
        "share",
             "differs", "differs_aligned", "a head whose values are its scores, so that both must agree", above=0.1),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {
        "sampled LIME": Panel("samples", "distance", "xy"),
        ONE_TEXT: Panel("token", "explanation"),
    }

    tokens: Annotated[int, Ge(3), Le(12)] = 8
    heads: Size = 4
    dim: Size = 16
    texts: Size = 64

    def draw(self, seed: int) -> dict[str, Any]:
        """Differences, slopes and shares over the texts of one random classifier."""
        chance = generator(self.name, seed)
        keys = 1.5 * torch.randn(self.heads, self.dim, generator=chance, dtype=torch.float64) / self.dim**0.5
        values = torch.randn(self.heads, self.dim, generator=chance, dtype=torch.float64) / self.dim**0.5
        texts = torch.randn(self.texts, self.tokens, self.dim, generator=chance, dtype=torch.float64)
        unknown = 0.1 * torch.randn(self.dim, generator=chance, dtype=torch.float64)
        model, aligned = Classifier(keys, values), Classifier(keys[:1], keys[:1])
        lime, weights = lime_of(model, texts, unknown), model.attention(texts).mean(1)
        lowers = leave_one_out(model, texts, unknown) < 0
        exact = model_gradient(model, texts)
        distance = {
            name: sampled(model, texts, unknown, to, chance) for name, to in (("", lime), ("_attention", weights))
        }
        return {
            "measures": {
                "gradient": gap(gradient(model, texts), exact),
                "gradient_half": gap(gradient(model, texts, scores=False), exact),
                **{f"slope{name}": abs(slope(found) + 0.5) for name, found in distance.items()},
                "negative": float((lime < 0)[lowers].double().mean()),
                "negative_attention": float((weights < 0)[lowers].double().mean()),
                "differs": disagreement(model, texts, unknown),
                "differs_aligned": disagreement(aligned, texts, unknown),
            },
            "lines": {
                "sampled LIME": {"from its closed form": distance[""], "from attention": distance["_attention"]},
            },
            "maps": {ONE_TEXT: [scaled(one) for one in (lime[0], weights[0], (exact[0] * texts[0]).sum(-1))]},
        }  # fmt: skip


def gradient(model: Classifier, texts: torch.Tensor, scores: bool = True) -> torch.Tensor:
    """The closed form [texts, n, dim]: a head adds its weight times what the token says, plus how far that is from what
    the head says already times the key weights, by which the token would be attended to more."""
    attention = model.attention(texts)
    said = model.values @ texts.transpose(-1, -2)
    beside = said - (attention * said).sum(-1, keepdim=True)
    by_value = attention[..., None] * model.values[:, None]
    by_score = (attention * beside)[..., None] * model.keys[:, None]
    return (by_value + by_score if scores else by_value).mean(1)


def model_gradient(model: Classifier, texts: torch.Tensor) -> torch.Tensor:
    """The same by autograd."""
    with torch.enable_grad():
        tokens = texts.clone().requires_grad_()
        return torch.autograd.grad(model.logit(tokens).sum(), tokens)[0]


def gap(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((found - exact).abs().max() / exact.abs().max())


def masks(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All masks [2^n - 1, n] of which tokens stay, at least one gone; and how often LIME draws each, times its kernel.

    It draws how many go, evenly from 1 to n, and then which of them.
    """
    stay = ((torch.arange(2**tokens - 1)[:, None] >> torch.arange(tokens)) & 1).double()
    gone = tokens - stay.sum(-1)
    ways = torch.tensor(
        [torch.tensor(tokens - k + 1.0).lgamma() + torch.tensor(k + 1.0).lgamma() for k in range(tokens + 1)]
    )
    often = (ways[gone.long()].double() - torch.tensor(tokens + 1.0).lgamma()).exp() / tokens
    distance = 1 - (1 - gone / tokens).sqrt()
    return stay, often * torch.exp(-(distance**2) / (2 * BANDWIDTH**2))


def masked(model: Classifier, texts: torch.Tensor, unknown: torch.Tensor, stay: torch.Tensor) -> torch.Tensor:
    """Logits [texts, masks] with the tokens that do not stay replaced."""
    return torch.stack([model.logit(torch.where(stay[:, :, None] > 0, text, unknown)) for text in texts])


def lime_of(model: Classifier, texts: torch.Tensor, unknown: torch.Tensor) -> torch.Tensor:
    """LIME's coefficients [texts, n] of infinitely many samples, by the closed form of its regression: masks are
    exchangeable, so that its normal equations have three different numbers only."""
    stay, weight = masks(texts.shape[1])
    count = texts.shape[1]
    none, one, two = (float((weight * part).sum()) for part in (1.0, stay[:, 0], stay[:, 0] * stay[:, 1]))
    logits = masked(model, texts, unknown, stay) * weight
    mean, each = logits.sum(-1), logits @ stay
    total = (each.sum(-1) - count * one * mean / none) / (one - two + count * two - count * one**2 / none)
    start = (mean - one * total) / none
    return (each - one * start[:, None] - two * total[:, None]) / (one - two)


def sampled(
    model: Classifier, texts: torch.Tensor, unknown: torch.Tensor, to: torch.Tensor, chance: torch.Generator
) -> list[list[float]]:
    """[samples, distance from `to`] of LIME on samples, by weighted least squares."""
    stay, weight = masks(texts.shape[1])
    logits = masked(model, texts, unknown, stay)
    found = []
    for samples in SAMPLES:
        far = []
        for text, wanted in zip(logits, to, strict=True):
            # Masks drawn as often as their weight says: in the mean the same regression as masks weighed afterwards.
            drawn = torch.multinomial(weight, samples, replacement=True, generator=chance)
            design = torch.cat([torch.ones(samples, 1, dtype=torch.float64), stay[drawn]], dim=1)
            solved = torch.linalg.lstsq(design, text[drawn, None]).solution[1:, 0]
            far.append(float((solved - wanted).norm()))
        found.append([float(samples), sum(far) / len(far)])
    return found


def slope(line: list[list[float]]) -> float:
    """Of the logarithms, by least squares."""
    points = torch.tensor(line, dtype=torch.float64).log()
    x, y = (points - points.mean(0)).T
    return float((x * y).sum() / (x * x).sum())


def leave_one_out(model: Classifier, texts: torch.Tensor, unknown: torch.Tensor) -> torch.Tensor:
    """What the logit loses [texts, n] when a token is replaced."""
    alone = 1 - torch.eye(texts.shape[1], dtype=torch.float64)
    return model.logit(texts)[:, None] - masked(model, texts, unknown, alone)


def disagreement(model: Classifier, texts: torch.Tensor, unknown: torch.Tensor) -> float:
    """The smaller of two shares: of texts whose first token is another by LIME, and by gradient times input."""
    first = model.attention(texts).mean(1).argmax(-1)
    others = (lime_of(model, texts, unknown), (model_gradient(model, texts) * texts).sum(-1))
    return min(float((first != other.argmax(-1)).double().mean()) for other in others)


def scaled(weights: torch.Tensor) -> list[float]:
    """By token, with the largest at 1."""
    found: list[float] = (weights / weights.abs().max()).tolist()
    return found
