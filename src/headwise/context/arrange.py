"""The one call of a program that retrieves: documents and a question in, what is to be read out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwise.arrangers import Arranger, arrangers
from headwise.context.asked import Arranged, Asked
from headwise.context.wording import Wording, wording_of
from headwise.seams.transformers.cache import PreTrainedModel


def arrange(
    model: PreTrainedModel | None,
    tokenizer: Any,
    documents: Sequence[str],
    question: str,
    how: str | Arranger,
    wording: Wording | None = None,
) -> Arranged:
    """Arrange `documents` for `question` as a sentence says, such as "attention_sorting" or "bm25(keep=5) | attn_rank".

    model: a transformers model and its tokenizer; None and None do for arrangers that look at no attention. documents:
    in the order in which they were retrieved, the best first. wording: how they become a prompt; by the tokenizer's
    chat template where there is one. What comes out is a permutation or a part of what came in, never other words.
    Raises HeadwiseError where something cannot be honoured, before any forward that would be wasted.
    """
    parts = arrangers(how) if isinstance(how, str) else (how,)
    wording = wording or (Wording() if tokenizer is None else wording_of(tokenizer))
    found = Asked(model, tokenizer, tuple(documents), question, wording).arranged(range(len(documents)))
    for part in parts:
        asked = Asked(model, tokenizer, found.documents, question, wording)
        found = part.arrange(asked).after(found)
    return found
