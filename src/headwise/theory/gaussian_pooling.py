"""Features weighed by how near they are to a learned offset from their mean, without queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from headwise.experiments import Experiment, ExperimentCard, Part, Steps, register
from headwise.theory.fitting import adam, drawn, generator, share_right

HEADS, SLICE, GAUSSIANS, TOKENS = 4, 8, 2, 32  # a head weighs a slice of so many features
ROWS, TESTED, RATE = 32, 512, 1e-1
RARE, OFTEN = 4.0, 0.25  # the rare values' size, and at how many tokens of class 1; all else is standard normal
Head = tuple[Tensor, Tensor]  # offsets and widths, [heads, gaussians] each


@register("gaussian_pooling")
@dataclass(frozen=True, kw_only=True)
class GaussianPooling(Experiment):
    """Texts of normal features, of which one in each head's slice has rare values in one class, of mean 0.

    steps: of training.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Gaussian adaptive attention",
        statement="Weights from densities around the features' mean plus a learned offset are positive and sum to 1, "
        "peak where the offsets' closed form says, and where rare values are the evidence tell more than mean pooling "
        "does; the Importance Factor ranks the features that carry it first",
        paper="Gaussian Adaptive Attention is All You Need, arXiv 2401.11143, and its released layer",
        setting="frozen WavLM, Llama2 and BEiT before it, speech emotions, texts and images",
        seconds=90,
        systems=(58,),
        differs="features are drawn; offsets and widths are of each head; products of densities are computed as "
        "logarithms, where the released layer multiplies them and divides by at least 1e-8",
        leaves_out="pretrained models of speech, text and images",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("how far a token's weights of a head are from being positive and of sum 1, largest", "sums",
             "sums_products", "the products of densities themselves", below=1e-5),
        Part("how far the trained heads' weights peak from where the closed form says, raw units", "peak", "peak_mean",
             "the features' own mean", below=0.02),
        Part("right answers more than by mean pooling, share", "gain", "gain_fixed", "offsets held at 0", above=0.1),
        Part("planted features among as many of highest Importance Factor, share", "found", "found_untrained",
             "before training", above=0.9),
    )  # fmt: skip

    steps: Steps = 3000

    def draw(self, seed: int) -> dict[str, Any]:
        """Sums, peaks, right answers and ranks of one trained pooling beside others."""
        chance = generator(self.name, seed)
        planted = torch.arange(HEADS) * SLICE + torch.randint(SLICE, (HEADS,), generator=chance)
        x, label = texts(TESTED, planted, chance)
        none = torch.zeros(HEADS, GAUSSIANS)
        begun = {"gaussian": 0.5 * torch.randn(HEADS, GAUSSIANS, generator=chance), "fixed": none, "mean": none}
        ends = {name: self.trained(offsets, name, planted, chance, (x, label)) for name, offsets in begun.items()}
        right, own = {name: end[0] for name, end in ends.items()}, ends["gaussian"][1]
        first = (begun["gaussian"], torch.ones(HEADS, GAUSSIANS))
        offset = (own[0] / own[1] ** 2).sum(-1) / (1 / own[1] ** 2).sum(-1)
        weights = gaussian_weights(x, own)
        return {"measures": {
            "sums": far_from_simplex(weights), "sums_products": far_from_simplex(densities(x, own).exp()),
            "peak": peak_gap(own, offset), "peak_mean": peak_gap(own, torch.zeros(HEADS)),
            "gain": right["gaussian"] - right["mean"], "gain_fixed": right["fixed"] - right["mean"],
            "found": first_found(weights, planted), "found_untrained": first_found(gaussian_weights(x, first), planted),
            "right": right["gaussian"], "right_mean": right["mean"],
        }}  # fmt: skip

    def trained(
        self, offsets: Tensor, name: str, planted: Tensor, chance: torch.Generator, held: tuple[Tensor, Tensor]
    ) -> tuple[float, Head]:
        """Right answers on held texts and the head, trained with a linear classifier of what is pooled; widths alone
        where offsets are fixed, neither where the mean is taken."""
        out = drawn(chance, HEADS * SLICE, 2)
        head = (offsets.clone(), torch.ones(HEADS, GAUSSIANS))
        learned = {"gaussian": head, "fixed": head[1:], "mean": ()}[name]
        for one in learned:
            one.requires_grad_()

        def logits(x: Tensor) -> Tensor:
            pooled = x if name == "mean" else x * gaussian_weights(x, head) * SLICE
            return pooled.sum(1) @ out / TOKENS**0.5

        def loss() -> Tensor:
            x, label = texts(ROWS, planted, chance)
            return cross_entropy(logits(x), label)

        adam([*learned, out], loss, self.steps, RATE)
        with torch.no_grad():
            return share_right(logits(held[0]), held[1]), (head[0].detach(), head[1].detach())


def texts(rows: int, planted: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts [rows, TOKENS, features] and their classes: in class 1 planted features are rare values above and below 0,
    equally often."""
    x = torch.randn(rows, TOKENS, HEADS * SLICE, generator=chance)
    label = torch.randint(2, (rows,), generator=chance)
    lot = torch.rand(rows, TOKENS, HEADS, generator=chance)
    rare = RARE * ((lot < OFTEN / 2).float() - (lot > 1 - OFTEN / 2).float()) * label[:, None, None]
    x[..., planted] = torch.where(rare != 0, rare, x[..., planted])
    return x, label


def densities(x: Tensor, head: Head) -> Tensor:
    """Logarithms of the products of a head's Gaussians at its features: x and found [..., features]."""
    offsets, widths = head
    own = x.unflatten(-1, (HEADS, -1))
    spread = (own.var(-1, keepdim=True) + 1e-8).sqrt()
    far = (own[..., None] - own.mean(-1, keepdim=True)[..., None] - offsets[:, None]) / spread[..., None]
    return (-far.square() / (2 * widths[:, None] ** 2) - widths[:, None].abs().log()).sum(-1).flatten(-2)


def gaussian_weights(x: Tensor, head: Head) -> Tensor:
    """The weights of features, of which a head's are of sum 1."""
    return densities(x, head).unflatten(-1, (HEADS, -1)).softmax(-1).flatten(-2)


def far_from_simplex(weights: Tensor) -> float:
    """Of a head's features at a token: how far their sum is from 1, or the least is below 0, at most."""
    own = weights.unflatten(-1, (HEADS, -1))
    return float(torch.maximum((own.sum(-1) - 1).abs().max(), -own.min()))


def peak_gap(head: Head, offset: Tensor) -> float:
    """How far the feature of most weight is from the mean plus `offset [heads]`, the mean over heads, where a head's
    features lie close to each other on both sides of their mean."""
    line = torch.linspace(-32, 32, 16001)
    weights = gaussian_weights(line.repeat(HEADS), head).unflatten(-1, (HEADS, -1))
    return float((line[weights.argmax(-1)] - offset).abs().mean())


def first_found(weights: Tensor, planted: Tensor) -> float:
    """The share of planted features among as many whose mean weight, scaled to reach from 0 to 1, is highest."""
    mean = weights.flatten(0, -2).mean(0)
    factor = (mean - mean.min()) / (mean.max() - mean.min())
    return float(torch.isin(factor.topk(len(planted)).indices, planted).float().mean())
