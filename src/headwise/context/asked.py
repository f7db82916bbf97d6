"""What an arranger is given and what it gives: documents with a question, and what is to be read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from headwise.bench.job import encode
from headwise.context.layout import Pieces
from headwise.context.wording import Wording
from headwise.errors import ContextError, HeadwiseError, shown
from headwise.seams.transformers.cache import PreTrainedModel, attach


@dataclass(frozen=True, eq=False)
class Asked:
    """Documents, a question on them, and the model that is to answer, or None where no arranger looks at it."""

    model: PreTrainedModel | None
    tokenizer: Any
    documents: tuple[str, ...]
    question: str
    wording: Wording

    def __post_init__(self) -> None:
        if not self.documents:
            raise ContextError("there are no documents; give at least one")
        for what, text in (
            *((f"document {i}", one) for i, one in enumerate(self.documents)),
            ("the question", self.question),
        ):
            if not isinstance(text, str) or not text.strip():
                raise HeadwiseError(f"{what} is {shown(text)}; give a text")

    def needs(self, who: str) -> tuple[PreTrainedModel, Any]:
        """The model and its tokenizer, for an arranger that looks at attention."""
        if self.model is None or self.tokenizer is None:
            raise HeadwiseError(f"{who} looks at a model's attention; give a model and its tokenizer")
        return self.model, self.tokenizer

    def tokens(self, documents: Sequence[str], wording: Wording | None = None) -> list[torch.Tensor]:
        """The ids [1, n] of each piece of the prompt over these documents, refused where the model has no room."""
        model, tokenizer = self.needs("reading")
        pieces = encoded(tokenizer, wording or self.wording, tuple(documents), self.question)
        refuse_length(model, sum(piece.shape[1] for piece in pieces))
        return pieces

    def arranged(self, places: Sequence[int], scores: Mapping[int, float] | None = None, passes: int = 0) -> Arranged:
        """The documents of these places, in this order."""
        documents = tuple(self.documents[place] for place in places)
        return Arranged(self.question, documents, tuple(places), dict(scores or {}), passes, self.wording)


@dataclass(frozen=True, eq=False)
class Arranged:
    """What is to be read. documents: whole ones or parts. places: which of the documents given each one is, or is of.

    scores: how relevant those that were looked at were found, by place; empty where nobody looked. passes: forwards of
    the model that it took. pieces: how the documents are read where each is to be read by itself, or None.
    """

    question: str
    documents: tuple[str, ...]
    places: tuple[int, ...]
    scores: dict[int, float] = field(default_factory=dict)
    passes: int = 0
    wording: Wording = field(default_factory=Wording)
    pieces: Pieces | None = None

    @property
    def text(self) -> str:
        """The prompt. Where `pieces` tell how documents are read, `answer` reads it so; other programs cannot."""
        return "".join(self.wording.texts(self.documents, self.question))

    def after(self, before: Arranged) -> Arranged:
        """The same told of the documents that `before` was made of, of whose documents this was made."""
        places = tuple(before.places[place] for place in self.places)
        scores = {before.places[place]: score for place, score in self.scores.items()} or before.scores
        return replace(self, places=places, scores=scores, passes=before.passes + self.passes)


def encoded(tokenizer: Any, wording: Wording, documents: tuple[str, ...], question: str) -> list[torch.Tensor]:
    """The ids [1, n] of each piece of a prompt, encoded by itself, so that a document's tokens are the same wherever it
    stands."""
    first, *rest = wording.texts(documents, question)
    return [encode(tokenizer, first, start=wording.starts), *(encode(tokenizer, one) for one in rest)]


def refuse_length(model: PreTrainedModel, tokens: int) -> None:
    """Refuse a prompt that is longer than what the model was trained on."""
    most = attach(model).geometry.max_positions
    if tokens > most:
        raise ContextError(
            f"the prompt has {tokens} tokens, the model was trained on {most}; give fewer or shorter documents, or "
            'choose some first ("bm25(keep=5) | ...")'
        )
