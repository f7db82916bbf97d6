"""BM25 by the library bm25s: words that question and document share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwise.arrangers import ArrangerCard, register
from headwise.context.asked import Asked
from headwise.context.ranker import Ranker
from headwise.errors import HeadwiseError


@register("bm25")
@dataclass(frozen=True)
class Bm25(Ranker):
    """Ranks by words in common. keep, best: see `Ranker`."""

    card = ArrangerCard(
        "The documents that share the rarest words with the question",
        "Okapi BM25 (Robertson and Zaragoza 2009), as the library bm25s computes it",
        "none",
        "a rival and no paper of attention; idf is of the documents given, words are lower-cased and not stemmed, and "
        "English stop words are left out",
    )

    def scores(self, asked: Asked) -> Sequence[float]:
        try:
            import bm25s
        except ImportError:
            raise HeadwiseError("bm25 needs the library bm25s; pip install 'headwise[context]'") from None
        index = bm25s.BM25()
        tokens = bm25s.tokenize([*asked.documents, asked.question], return_ids=False, show_progress=False)
        *documents, question = tokens
        if not any(documents) or not set(question) & {word for one in documents for word in one}:
            return [0.0] * len(documents)  # no word in common: the order stays
        index.index(documents, show_progress=False)
        return [float(score) for score in index.get_scores(question)]
