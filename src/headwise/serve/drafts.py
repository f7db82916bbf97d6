"""Guesses of how an answer goes on, which are read in one pass with its newest token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from headwise.decoding.base import Written
from headwise.decoding.drafters.lookup import Lookup
from headwise.serve.rows import Rows

if TYPE_CHECKING:
    from headwise.serve.lanes import Choice

TRIED, LEAST = 16, 0.5  # passes after which a choice drafts on only if they brought so many tokens more each


class Drafts:
    """The guesses of one choice. guessed: those that the next pass reads, none where it is a step as any other. They
    are as many as give its rows the sums of steps with others; so the same tokens are written as without them."""

    def __init__(self, drafter: Lookup, prompt: Sequence[int]) -> None:
        self._proposer, self._prompt = drafter.start(None), list(prompt)
        self.guessed: list[int] = []
        self.passes = self.proposed = self.right = 0

    def guess(self, choice: Choice, rows: Rows) -> bool:
        """Guess what follows a choice's newest token; whether there is anything to verify."""
        self.guessed = []
        left = choice.request.max_tokens - choice.count
        most = min(choice.cache.room, rows.most, left) - 1
        if choice.behind or most < max(1, rows.least - 1) or not self._pays:
            return False
        ids = torch.tensor([*self._prompt, *choice.written])
        draft = self._proposer.propose(Written(0, ids, most, most)).chain.within(most, most)
        if len(draft.tokens) >= max(1, rows.least - 1):
            self.guessed = [int(token) for token in draft.tokens]
        return bool(self.guessed)

    @property
    def _pays(self) -> bool:
        return self.passes < TRIED or self.right >= LEAST * self.passes

    def accepted(self, right: int) -> None:
        """The first `right` of the guesses were written."""
        self.passes, self.proposed = self.passes + 1, self.proposed + len(self.guessed)
        self.right, self.guessed = self.right + right, []
