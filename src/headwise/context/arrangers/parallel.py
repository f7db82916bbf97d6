"""Parallel context encoding with its two fixes (Zhang et al. 2024, arXiv 2412.16545): pieces are read without each
other, beside a shared beginning that takes up spare attention, and the question sees those of most attention."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headwise.arrangers import Arranger, ArrangerCard, register
from headwise.context.asked import Arranged, Asked
from headwise.context.layout import Pieces
from headwise.errors import HeadwiseError
from headwise.knobs import NonNegative


@register("parallel")
@dataclass(frozen=True)
class Parallel(Arranger):
    """pieces: that documents are read in, neighbours together; 0: each by itself. sinks: whether all of them see what
    comes before the documents. top: pieces that the question, and each token of the answer, sees; 0: all."""

    card = ArrangerCard(
        "All documents in their order, to be read in pieces that do not see each other",
        "Attention Entropy is a Key Factor, 2412.16545, sections 3 and 4",
        "none before the answer, whose reading is cheaper by the pairs between pieces",
        "the shared sinks are the instruction before the documents, and not tokens of their own; pieces are chosen by "
        "a layer and KV head for all tokens of the question together, and anew for each token of the answer, by the "
        "attention of whole pieces, where the paper chooses by query; all pieces start at the same position, and "
        "the question after the longest",
        (181,),
    )
    pieces: NonNegative = 0
    sinks: bool = True
    top: NonNegative = 0

    def arrange(self, asked: Asked) -> Arranged:
        count = self.pieces or len(asked.documents)
        if max(count, self.top) > len(asked.documents) or self.top > count:
            raise HeadwiseError(
                f"{self}: there are {len(asked.documents)} documents; give that many pieces or fewer, and no higher top"
            )
        found = asked.arranged(range(len(asked.documents)))
        return replace(found, pieces=Pieces(self.pieces, self.sinks, self.top))
