"""The last token of a block stands for it: a query finds the block by it, and reads the block's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwise.knobs import NonNegative, Positive
from headwise.layer_parts import LayerCard, Limit, layer_part
from headwise.layers.patterns import Field, Lone, Pattern
from headwise.layers.regions import region_softmax, regions

LEAST = float("-inf")


@layer_part("pattern", "landmark")
@dataclass(frozen=True)
class Landmark(Pattern):
    """A softmax over the tokens of the query's own block and the landmarks of those before it; the weight of a
    landmark is shared out among its block's tokens by a softmax of their own.

    block: tokens of a block beside its landmark, which comes last. retrieve: blocks beside its own that a query reads,
    those of the highest landmarks in each head; 0 is all of them.
    """

    block: Positive = 50
    retrieve: NonNegative = 0
    softmax_only: ClassVar[bool] = True
    card: ClassVar[LayerCard] = LayerCard(
        "Landmark attention",
        "Random-Access Infinite Context Length for Transformers, 2305.16300, section 3",
        "far blocks are found by a token each, and only those that are found are read",
        "w_ij = p_i(landmark of j's block) softmax over j's block of s_ij, p_i a softmax over the query's own block "
        "and all landmarks before it",
        systems=(54,),
        equals=(
            Limit("a block as long as the text: plain attention", "heads", of="landmark(64)"),
            Limit("as many blocks as there are: all of them", "landmark(3)", of="landmark(3, retrieve=64)"),
        ),
        deviations="whatever token ends a block is its landmark, so texts must have one there (`landmarks` of a "
        "sequence task puts it in); places are not mapped anew when blocks are retrieved; all keys are held, and what "
        "is saved is what is read (`SparseAttend.pairs`)",
    )

    def _parts(self, field: Field) -> tuple[Tensor, Tensor]:
        """Whether a key is an ordinary token or landmark that the first softmax may have, and whether it is a landmark
        before the query's block."""
        size = self.block + 1
        own = field.places // size == field.asks // size
        marks = field.block.seen & ~own & (field.places % size == self.block)
        return field.block.seen & own, marks

    def _found(self, scores: Tensor, marks: Tensor) -> Tensor:
        """Of the landmarks `marks`, those that are retrieved, in each head."""
        if not self.retrieve:
            return marks
        marks = marks.expand_as(scores)
        held = scores.masked_fill(~marks, LEAST)
        best = held.topk(min(self.retrieve, held.shape[-1]), dim=-1).indices
        return marks & torch.zeros_like(marks).scatter(-1, best, True)

    def _shares(self, field: Field) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of the first softmax, those of landmarks carried to their blocks' tokens, and the regions."""
        scores = field.score(field.block)
        own, marks = self._parts(field)
        found = self._found(scores, marks)
        first = scores.masked_fill(~(own | found), LEAST).softmax(-1)
        region = regions(field.places % (self.block + 1) == 0).expand_as(scores)
        of_block = torch.zeros_like(first).scatter_add(-1, region, first * found)
        return first * own, of_block.gather(-1, region), region

    def weights(self, field: Field) -> Tensor:
        near, carried, region = self._shares(field)
        own, _ = self._parts(field)
        ordinary = field.block.seen & ~own & (field.places % (self.block + 1) != self.block)
        return near + carried * region_softmax(field.score(field.block), region, ordinary)

    def seen(self, field: Field) -> Tensor:
        own, marks = self._parts(field)
        found = self._found(field.score(field.block), marks)
        region = regions(field.places % (self.block + 1) == 0).expand_as(found)
        return own | (torch.zeros(region.shape).scatter_add(-1, region, found.float()).gather(-1, region) > 0)

    def reads(self, lone: Lone) -> Sequence[int]:
        size = self.block + 1
        start = lone.place // size * size
        marks = list(range(self.block, start, size))
        if self.retrieve and marks:
            scores = lone.scores(marks).tolist()
            marks = sorted(sorted(marks, key=lambda mark: -scores[marks.index(mark)])[: self.retrieve])
        far = [j for mark in marks for j in range(mark - self.block, mark + 1)]
        return [*far, *range(start, lone.place + 1)]

    def alone(self, lone: Lone) -> Tensor:
        size = self.block + 1
        start = lone.place // size * size
        marks = [j for j in self.reads(lone) if j < start and j % size == self.block]
        own = list(range(start, lone.place + 1))
        first = lone.scores([*marks, *own]).softmax(0)
        weights = lone.row.k.new_zeros(lone.place + 1).index_put((torch.tensor(own),), first[len(marks) :])
        for share, mark in zip(first, marks, strict=False):
            block = list(range(mark - self.block, mark))
            weights = weights.index_add(0, torch.tensor(block), share * lone.scores(block).softmax(0))
        return weights
