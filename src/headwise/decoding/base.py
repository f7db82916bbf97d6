"""What drafters are asked and what they answer: a text that grows, and guesses of how it goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from headwise.errors import HeadwiseError
from headwise.forms import Tree

Distribution = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # ids [1, n], logits [1, vocab] -> [1, vocab]


@dataclass(frozen=True)
class Draft:
    """Guessed tokens: a chain, each after the one before, or a tree, in which several may come next.

    probabilities: [tokens, vocab], with which each was drawn; None where they are sure of themselves, as those that are
    looked up are. Of several that follow the same token each was drawn after those before it were, by probabilities
    that may depend on these. Speculative sampling needs them to keep the distribution.
    parents: by token, the place of the one that it follows, which comes before it, or -1 where it follows the text;
    None for a chain. The best guesses come first: where there is no room, or trees cannot be read, the last ones go.
    """

    tokens: Sequence[int] = ()
    probabilities: torch.Tensor | None = None
    parents: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.probabilities is not None and len(self.probabilities) != len(self.tokens):
            raise HeadwiseError(
                f"a draft of {len(self.tokens)} tokens has the probabilities of {len(self.probabilities)}; give one "
                "row for each token"
            )
        if self.parents is None:
            return
        if len(self.parents) != len(self.tokens) or any(not -1 <= one < i for i, one in enumerate(self.parents)):
            raise HeadwiseError(
                f"a draft of {len(self.tokens)} tokens says that they follow {list(self.parents)}; give for each the "
                "place of one before it, or -1"
            )
        if len(set(zip(self.parents, self.tokens, strict=True))) < len(self.tokens):
            raise HeadwiseError("a draft names a token twice as the next of the same one; name it once")

    @property
    def tree(self) -> Tree:
        """How the text's last token, the first node, and the draft's tokens follow each other."""
        return Tree(
            (-1, *range(len(self.tokens))) if self.parents is None else (-1, *(one + 1 for one in self.parents))
        )

    @property
    def chain(self) -> Draft:
        """The best guesses that follow each other: of several next tokens the first."""
        if self.parents is None:
            return self
        path: list[int] = []
        for place, parent in enumerate(self.parents):
            if parent == (path[-1] if path else -1):
                path.append(place)
        return replace(self._of(path), parents=None)

    def within(self, depth: int, tokens: int) -> Draft:
        """What of it is in the first `tokens` and follows the text by at most `depth`."""
        if self.parents is None:
            return self._of(range(min(depth, tokens, len(self.tokens))))
        depths = self.tree.depths[1:]
        return self._of([place for place, own in enumerate(depths[:tokens]) if own <= depth])

    def _of(self, places: Sequence[int]) -> Draft:
        """Some of its tokens, with every one also those that it follows."""
        numbers = {-1: -1} | {old: new for new, old in enumerate(places)}
        return Draft(
            [self.tokens[place] for place in places],
            None if self.probabilities is None else self.probabilities[list(places)],
            None if self.parents is None else [numbers[self.parents[place]] for place in places],
        )


@dataclass(frozen=True)
class Written:
    """What a proposer may look at: `ids [n]`, the prompt and what follows it in one batch row, without padding.

    most: tokens one after the other that can be verified now. nodes: tokens of a tree in all. distribution: how the
    model's logits become the probabilities by which tokens are drawn; None in greedy decoding. states: [m, d], what the
    model's last layer made of the last tokens before the newest, at most so many as the proposer `reads_states` of.
    encoded: [columns, d], what the encoder of a model that has one made of the row's input.
    """

    row: int
    ids: torch.Tensor
    most: int
    nodes: int
    distribution: Distribution | None = None
    states: torch.Tensor | None = None
    encoded: torch.Tensor | None = None


class Proposer(ABC):
    """A drafter at work on one generation. reads_states: of how many tokens it looks at what the model's last layer
    made of them."""

    reads_states: int = 0

    @abstractmethod
    def propose(self, written: Written) -> Draft:
        """Guess how a row goes on, by at most `written.most` tokens one after the other and `written.nodes` in all; no
        token where there is nothing to go by."""

    def finish(self, row: int, ids: torch.Tensor) -> None:  # noqa: B027  # most have nothing to do
        """Told what a row has become in the end, ids [n]."""
