"""Controls of all arrangers: documents as they were given, and in any order."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from headwise.arrangers import Arranger, ArrangerCard, register
from headwise.context.asked import Arranged, Asked
from headwise.knobs import NonNegative


@register("as_given")
@dataclass(frozen=True)
class AsGiven(Arranger):
    """Changes nothing."""

    card = ArrangerCard("All documents, as they were given: the neutral arranger", "none: a control", "none")

    def arrange(self, asked: Asked) -> Arranged:
        return asked.arranged(range(len(asked.documents)))


@register("shuffled")
@dataclass(frozen=True)
class Shuffled(Arranger):
    """seed: of the order, which the question changes too."""

    card = ArrangerCard("All documents in a random order", "none: a control", "none")
    seed: NonNegative = 0

    def arrange(self, asked: Asked) -> Arranged:
        places = list(range(len(asked.documents)))
        Random(f"{self.seed} {asked.question}").shuffle(places)
        return asked.arranged(places)
