"""A file of token ids that were written before, the newest of them within a number of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from headwise.drafts import replaced
from headwise.errors import FileError

FORMAT = "headwise-runs-1"


class Runs:
    """Texts as token ids in one file, the oldest first, for one vocabulary; no more than `most` bytes of it.

    FileError where the file is of another kind or vocabulary. Two processes that write at once keep what the last one
    had: guesses are lost, nothing else.
    """

    def __init__(self, path: Path, vocabulary: int, most: int) -> None:
        self.path, self.vocabulary, self.most = path, vocabulary, most
        self.texts()  # refuses before any work

    def texts(self) -> list[list[int]]:
        """What the file holds; nothing where there is none yet."""
        if not self.path.exists():
            return []
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
            kind, vocabulary, texts = told["format"], told["vocabulary"], told["texts"]
            whole = all(type(token) is int and 0 <= token < vocabulary for text in texts for token in text)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FileError(f"{self.path} is no file of runs ({error}); give another path, or remove it") from error
        if kind != FORMAT or not whole:
            raise FileError(f"{self.path} is no file of runs of this version; give another path, or remove it")
        if vocabulary != self.vocabulary:
            raise FileError(
                f"{self.path} holds runs over a vocabulary of {vocabulary} tokens, the model has {self.vocabulary}; "
                "keep a file for each tokenizer"
            )
        return [list(text) for text in texts]

    def add(self, ids: Sequence[int]) -> None:
        """Keep a text as the newest; the oldest go where there would be more bytes than may be."""
        texts = [*self.texts(), list(ids)]
        while texts and len(written := self._written(texts)) > self.most:
            texts = texts[1:]
        if texts:
            with replaced(self.path) as draft:
                draft.write(written)

    def _written(self, texts: Sequence[Sequence[int]]) -> bytes:
        told = {"format": FORMAT, "vocabulary": self.vocabulary, "texts": texts}
        return json.dumps(told, separators=(",", ":")).encode()
