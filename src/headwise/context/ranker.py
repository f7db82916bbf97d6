"""The base of arrangers that give every document a score and put them in the order of their scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from headwise.arrangers import Arranger
from headwise.context.asked import Arranged, Asked
from headwise.knobs import NonNegative


@dataclass(frozen=True)
class Ranker(Arranger):
    """keep: documents of the highest scores that stay; 0: all. best: where the one of the highest score comes."""

    passes: ClassVar[int] = 0  # forwards of the model that a ranking takes
    keep: NonNegative = 0
    best: Literal["first", "last"] = "first"

    @abstractmethod
    def scores(self, asked: Asked) -> Sequence[float]:
        """How relevant each document is to the question; the higher the more."""

    def arrange(self, asked: Asked) -> Arranged:
        scores = self.scores(asked)
        order = ranked(scores)[: self.keep or None]
        return asked.arranged(order if self.best == "first" else order[::-1], dict(enumerate(scores)), self.passes)


def ranked(scores: Sequence[float]) -> list[int]:
    """The places of scores from the highest to the lowest, equal ones as they stand."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])
