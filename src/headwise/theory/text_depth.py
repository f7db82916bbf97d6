"""How central a text is among others, by its embedding, and whether two sets of texts lie elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch.nn.functional import normalize

from headwise.experiments import Experiment, ExperimentCard, Part, register
from headwise.theory.fitting import generator

WIDTH, ALPHA = 32, 0.01  # channels of an embedding; below which p-value corpora count as different


@register("text_depth")
@dataclass(frozen=True, kw_only=True)
class TextDepth(Experiment):
    """Draws corpora of unit vectors around a centre of their own, takes the depth of every one, and tests pairs of
    corpora by the ranks of their depths in the first.

    corpora: that are drawn. texts: of each. spread: of the noise around a centre of length 1, for all channels
    together. shift: by how much the centre of a shifted corpus is moved.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="TTE depth",
        statement="The depth of a text, two less its mean cosine distance from a corpus, is highest at the centre; "
        "ranks of depths tell a shifted corpus at p < 0.01, and hardly ever a sample of the same",
        paper="Statistical Depth for Ranking and Characterizing Transformer-Based Text Embeddings, arXiv 2310.15010, "
        "its depth and its rank-sum test",
        setting="cosine distance, Wilcoxon's rank-sum test, embeddings of sentence encoders",
        seconds=10,
        systems=(88,),
        differs="vectors are drawn around centres; no encoder makes them; the test is the normal approximation without "
        "ties, of both sides",
        leaves_out="embeddings of texts",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("corpora in which the centre is deepest, share", "deepest", "deepest_member",
             "a text of the corpus by chance", above=0.95),
        Part("shifted corpora that the test tells, share", "told", "told_same",
             "samples of the same corpus", above=0.9),
        Part("samples of the same corpus that the test tells, share", "told_same", "told",
             "shifted corpora", below=0.05),
    )  # fmt: skip

    corpora: Annotated[int, Ge(16), Le(4096)] = 128
    texts: Annotated[int, Ge(16), Le(256)] = 100
    spread: Annotated[float, Ge(0.1), Le(10.0)] = 1.0
    shift: Annotated[float, Ge(0.0), Le(10.0)] = 0.5

    def draw(self, seed: int) -> dict[str, Any]:
        """Shares of corpora."""
        chance, found = generator(self.name, seed), []
        for _ in range(self.corpora):
            centre, away = normalize(torch.randn(2, WIDTH, generator=chance), dim=1)
            corpus, same, shifted = (
                self.around(one, chance) for one in (centre, centre, normalize(centre + self.shift * away, dim=0))
            )
            depths = depth(torch.cat([centre[None], corpus]), corpus)
            member = 1 + int(torch.randint(self.texts, (1,), generator=chance))
            found.append([
                float(depths.argmax() == 0),
                float(depths.argmax() == member),
                float(differs(depth(corpus, corpus), depth(shifted, corpus)) < ALPHA),
                float(differs(depth(corpus, corpus), depth(same, corpus)) < ALPHA),
            ])  # fmt: skip
        means = torch.tensor(found).mean(0).tolist()
        return {"measures": dict(zip(("deepest", "deepest_member", "told", "told_same"), means, strict=True))}

    def around(self, centre: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
        """A corpus of unit vectors [texts, width]."""
        noise = torch.randn(self.texts, WIDTH, generator=chance) / WIDTH**0.5
        return normalize(centre + self.spread * noise, dim=1)


def depth(texts: torch.Tensor, corpus: torch.Tensor) -> torch.Tensor:
    """Two less the mean cosine distance of unit vectors [n, width] from those of a corpus: [n]."""
    return 2 - (1 - texts @ corpus.T).mean(1)


def differs(one: torch.Tensor, other: torch.Tensor) -> float:
    """The p-value of Wilcoxon's rank-sum test of two samples, of both sides, by the normal approximation."""
    few, many = len(one), len(other)
    ranks = torch.cat([one, other]).argsort().argsort().double() + 1
    score = (ranks[:few].sum() - few * (few + many + 1) / 2) / (few * many * (few + many + 1) / 12) ** 0.5
    return float(torch.erfc(score.abs() / 2**0.5))
