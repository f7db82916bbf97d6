"""A control: sentences that chance keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from headwise.arrangers import Arranger, ArrangerCard, register
from headwise.context.arrangers.sentinel import of_sentences, within
from headwise.context.asked import Arranged, Asked
from headwise.context.sentences import sentences
from headwise.knobs import PositiveShare


@register("random_sentences")
@dataclass(frozen=True)
class RandomSentences(Arranger):
    """keep: share of the documents' tokens that may stay, in whole sentences. The question draws which."""

    card = ArrangerCard("Keeps sentences by chance, in their order", "none: a control", "none")
    keep: PositiveShare = 0.2

    def arrange(self, asked: Asked) -> Arranged:
        if self.keep == 1:
            return asked.arranged(range(len(asked.documents)))
        _, tokenizer = asked.needs("random_sentences")
        known = [(place, text) for place, one in enumerate(asked.documents) for text in sentences(one)]
        order = Random(asked.question).sample(range(len(known)), len(known))
        kept = within(tokenizer, [text for _, text in known], order, self.keep)
        return replace(of_sentences(asked, known, kept, {}), passes=0)
