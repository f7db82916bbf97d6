"""Prompts whose documents are read in pieces that do not see each other: who sees whom, and where each stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch

from headwise.errors import ContextError, HeadwiseError
from headwise.forms import Causal, Composite, Full, Piece


@dataclass(frozen=True)
class Pieces:
    """How documents are read in pieces. count: of pieces, neighbours together; 0: each document is one.

    sinks: whether all pieces see what comes before the documents; else that is read with the first piece, and the
    others see themselves alone. top: pieces that the question sees, those of most attention; 0: all.
    """

    count: int = 0
    sinks: bool = True
    top: int = 0

    def layout(self, lengths: Sequence[int]) -> Layout:
        """Of a prompt whose pieces have so many tokens: what comes first, each document, what comes last."""
        head, *documents, tail = lengths
        count = self.count or len(documents)
        if count > len(documents):
            raise HeadwiseError(f"{count} pieces of {len(documents)} documents; give {len(documents)} or fewer")
        if self.top > count:
            raise HeadwiseError(f"top={self.top} of {count} pieces; give {count} or fewer, or 0 for all")
        edges = [round(i * len(documents) / count) for i in range(count + 1)]
        pieces = [sum(documents[a:b]) for a, b in pairwise(edges)]
        if self.sinks:
            return Layout(head, tuple(pieces), tail)
        return Layout(0, (head + pieces[0], *pieces[1:]), tail)


@dataclass(frozen=True)
class Layout:
    """prefix: tokens that all see. pieces: tokens of each, which see the prefix and their own past. tail: tokens at the
    end, which see everything before them. offset: position of the tail's first; 0: right after the longest piece."""

    prefix: int
    pieces: tuple[int, ...]
    tail: int
    offset: int = 0

    def __post_init__(self) -> None:
        if not self.pieces or min(self.pieces) < 1 or self.tail < 1:
            raise ContextError(f"pieces of {list(self.pieces)} tokens and an end of {self.tail}; each needs one token")
        if self.offset and self.offset < self.prefix + max(self.pieces):
            raise ContextError(
                f"offset={self.offset}: pieces reach to position {self.prefix + max(self.pieces)}; give that or more, "
                "or 0"
            )

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        return self.start + self.tail

    @property
    def start(self) -> int:
        """Where the tail begins."""
        return self.prefix + sum(self.pieces)

    @property
    def edges(self) -> list[tuple[int, int]]:
        """First token of each piece, and the one after its last."""
        return list(pairwise(accumulate(self.pieces, initial=self.prefix)))

    @cached_property
    def context(self) -> Composite:
        """Who sees whom before the tail: its pairs grow with the number of pieces, not with its square."""
        parts = [Piece(range(self.prefix), range(self.prefix), Causal())] if self.prefix else []
        for first, last in self.edges:
            if self.prefix:
                parts.append(Piece(range(first, last), range(self.prefix), Full()))
            parts.append(Piece(range(first, last), range(first, last), Causal()))
        return Composite(tuple(parts))

    @cached_property
    def where(self) -> Composite:
        """Who sees whom, the tail included."""
        tail = Piece(range(self.start, self.tokens), range(self.tokens), Causal())
        return Composite((*self.context.parts, tail))

    @property
    def positions(self) -> torch.Tensor:
        """Of each token, int64 [n]: all pieces begin where the prefix ends."""
        tail = self.offset or self.prefix + max(self.pieces)
        pieces = [torch.arange(self.prefix, self.prefix + count) for count in self.pieces]
        return torch.cat((torch.arange(self.prefix), *pieces, torch.arange(tail, tail + self.tail)))
