"""Explanations of one prompt beside one another: how alike they are, and whether the model heeds what they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from headwise.errors import HeadwiseError
from headwise.explanations import EXPLANATIONS
from headwise.lens.prompt import Prompt

TAKEN = (0.05, 0.1, 0.2, 0.4)  # shares of the tokens that are taken away, or kept alone
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Explained:
    """figures: by explanation, float32 [n]. refused: why the prompt does not allow one."""

    figures: dict[str, torch.Tensor]
    refused: dict[str, str]


def explained(prompt: Prompt, names: Sequence[str], watch: Watch = lambda what, done, total: None) -> Explained:
    """The figures of these explanations."""
    chosen = {name: EXPLANATIONS.get(name) for name in names}
    figures, refused = {}, {}
    for done, (name, one) in enumerate(chosen.items()):
        watch(f"explaining by {name}", done, len(chosen))
        try:
            figures[name] = one.of(prompt)
        except HeadwiseError as error:
            refused[name] = str(error)
    return Explained(figures, refused)


def kendall(a: torch.Tensor, b: torch.Tensor) -> float:
    """Kendall's tau-b of two rankings [n], which counts ties on either side; not a number where one is all ties."""
    one, other = (torch.sign(x[:, None] - x).double() for x in (a, b))
    ties = one.square().sum() * other.square().sum()
    return float((one * other).sum() / ties.sqrt()) if ties else float("nan")


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's correlation of two rankings [n], ties at their mean rank; not a number where one is all ties."""
    ranks = torch.stack([_ranks(x) for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(x: torch.Tensor) -> torch.Tensor:
    less, same = (x[:, None] > x).sum(1), (x[:, None] == x).sum(1)
    return less.double() + (same - 1) / 2


def agreement(figures: Mapping[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Kendall's tau-b of every pair of explanations, by both names."""
    return {one: {other: kendall(x, y) for other, y in figures.items()} for one, x in figures.items()}


def comprehensiveness(prompt: Prompt, figures: torch.Tensor) -> float:
    """How far the token's probability falls as the tokens of the highest figures are made blank, of what it was; the
    mean over how many (DeYoung et al. 2020, ERASER, arXiv 1911.03429, section 4)."""
    return 1.0 - _kept(prompt, figures, taken=True)


def sufficiency(prompt: Prompt, figures: torch.Tensor) -> float:
    """How much of the token's probability is left as all but the tokens of the highest figures are made blank."""
    return _kept(prompt, figures, taken=False)


def _kept(prompt: Prompt, figures: torch.Tensor, taken: bool) -> float:
    order = figures.argsort(descending=True)
    best = torch.zeros(len(TAKEN), prompt.tokens, dtype=torch.bool)
    for row, share in enumerate(TAKEN):
        best[row, order[: max(1, round(share * prompt.tokens))]] = True
    told = prompt.likelihood(torch.cat((prompt.ids.cpu(), prompt.without(best if taken else ~best)))).exp()
    return float((told[1:] / told[0]).clamp(max=1.0).mean())
