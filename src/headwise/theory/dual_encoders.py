"""How many dimensions a text's vector needs so that a word that only the right text holds is not lost in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le

from headwise.experiments import Experiment, ExperimentCard, Panel, Part, register
from headwise.theory.fitting import generator

WORDS, MOST, RIGHT = 2048, 6144, 0.99  # words there are; dimensions at most; share of questions ranked rightly
LENGTHS, ASKED, STRETCHES = (8, 16, 32, 64), 4, 8  # words of texts, of questions; stretches of the longest text
AT_ONCE = 32  # questions under one projection


@register("dual_encoders")
@dataclass(frozen=True, kw_only=True)
class DualEncoders(Experiment):
    """Draws questions of four words, each with a text that holds all of them and another one that holds all but one,
    and projects them at random to vectors of fewer dimensions.

    questions: of each length of texts.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Dimensions of dual encoders",
        statement="The dimension that ranks the right text first grows as one over the squared margin; where a text "
        "has a vector for each of its stretches, and the best counts, a vector needs less than half of the dimension",
        paper="Sparse, Dense, and Attentional Representations for Text Retrieval, arXiv 2005.00181, "
        "the bound of compressive dual encoders, and multi-vector encodings",
        setting="random projections of bags of words, any margin; several vectors are BERT's first states",
        seconds=20,
        systems=(195,),
        differs="texts and questions are drawn; the several vectors are projections of stretches of a text that hold a "
        "question whole",
        leaves_out="vectors of a trained encoder",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("the exponent of one over the margin, beside 2", "off_two", "off_two_shuffled", "margins of other lengths",
             below=0.4),
        Part("dimension of the best of several vectors over that of one vector", "several", "scattered",
             "as many vectors, of words by chance", below=0.5),
    )  # fmt: skip
    panels: ClassVar[dict[str, Panel]] = {"dimension needed": Panel("one over the margin", "dimension", "xy")}

    questions: Annotated[int, Ge(64), Le(4096)] = 1024

    def draw(self, seed: int) -> dict[str, Any]:
        """Exponents and dimensions."""
        chance = generator(self.name, seed)
        margins = [1 / math.sqrt(ASKED * 2 * (length - ASKED + 1)) for length in LENGTHS]
        whole = [self.needed(length, "whole", chance) for length in LENGTHS]
        shuffled = [margins[i] for i in (2, 0, 3, 1)]
        several, scattered = (self.needed(LENGTHS[-1], kind, chance) for kind in ("stretches", "scattered"))
        return {
            "measures": {
                "off_two": abs(exponent(margins, whole) - 2),
                "off_two_shuffled": abs(exponent(shuffled, whole) - 2),
                "several": several / whole[-1],
                "scattered": scattered / whole[-1],
                "several_in_all": several * STRETCHES / whole[-1],
                "whole_dimension": whole[-1],
            },
            "lines": {"dimension needed": {"one vector": [[1 / a, b] for a, b in zip(margins, whole, strict=True)]}},
        }

    def needed(self, length: int, kind: str, chance: torch.Generator) -> float:
        """The least dimension at which enough questions have the right text first; twice the most where none has."""
        right = torch.zeros(MOST)
        for _ in range(self.questions // AT_ONCE):
            project = torch.randn(WORDS, MOST, generator=chance)
            for _ in range(AT_ONCE):
                words = torch.randperm(WORDS, generator=chance)[: 2 * length - ASKED + 1]
                asked, other = words[:ASKED], words[length:]
                texts = words[:length], torch.cat([words[: ASKED - 1], other])
                query = project[asked].sum(0)
                best = [best_of(query, project, text, kind, chance) for text in texts]
                right += best[0] > best[1]
        enough = (right / (self.questions // AT_ONCE * AT_ONCE) >= RIGHT).nonzero()
        return float(enough[0]) + 1 if len(enough) else 2.0 * MOST


def best_of(
    query: torch.Tensor, project: torch.Tensor, text: torch.Tensor, kind: str, chance: torch.Generator
) -> torch.Tensor:
    """The likeness of a question and a text at every dimension [dimensions]: of one vector, or the highest of several,
    of stretches one after the other or of words by chance."""
    if kind == "whole":
        vectors = project[text].sum(0, keepdim=True)
    else:
        own = text if kind == "stretches" else text[torch.randperm(len(text), generator=chance)]
        vectors = project[own].unflatten(0, (STRETCHES, -1)).sum(1)
    return (vectors * query).cumsum(1).amax(0)


def exponent(margins: list[float], dimensions: list[float]) -> float:
    """The slope of the logarithm of dimensions over that of one over margins, by least squares."""
    x, y = -torch.tensor(margins).log(), torch.tensor(dimensions).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
