"""Guesses of how an answer goes on, which are read in one pass with its newest token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from headwise.decoding.base import Written
from headwise.decoding.drafters.lookup import Lookup
from headwise.decoding.pace import Pace
from headwise.errors import SessionError
from headwise.seams.transformers.cache import Cache
from headwise.serve.rows import Rows

if TYPE_CHECKING:
    from headwise.serve.lanes import Choice
    from headwise.serve.request import Request

REST = 16  # answers that are not drafted once drafts have not paid, before it is tried again


class Drafts:
    """The guesses of one choice. guessed: those that the next pass reads, none where it is a step as any other. They
    are as many as give its rows the sums of steps with others, and each reads by itself: so logits have the bits that
    they have without. pace: whether they pay; a choice that writes with others has its share of their step's seconds.
    alone: whether nothing is guessed while others write."""

    def __init__(self, drafter: Lookup, prompt: Sequence[int], pace: Pace, alone: bool = False) -> None:
        self._proposer, self._prompt = drafter.start(None), list(prompt)
        self.pace, self.alone = pace, alone
        self.guessed: list[int] = []
        self.seconds = 0.0  # of guessing and of passes over guesses, since the last pass that was judged
        self.passes = self.proposed = self.right = 0

    def guess(self, choice: Choice, rows: Rows) -> bool:
        """Guess what follows a choice's newest token; whether there is anything to verify."""
        self.guessed = []
        left, least = choice.request.max_tokens - choice.count, max(1, rows.least - 1)
        most = min(choice.cache.room, rows.most, left) - 1
        if choice.behind or most < least or not (self.pace.on and self.pace.ready):
            return False
        most = max(least, min(most, self.pace.most))
        ids = torch.tensor([*self._prompt, *choice.written])
        draft = self._proposer.propose(Written(0, ids, most, most)).chain.within(most, most)
        if len(draft.tokens) >= least:
            self.guessed = [int(token) for token in draft.tokens]
        return bool(self.guessed)

    def accepted(self, right: int) -> None:
        """The first `right` of the guesses were written."""
        self.passes, self.proposed = self.passes + 1, self.proposed + len(self.guessed)
        self.pace.drafted(right + 1, len(self.guessed), self.seconds)
        self.right, self.guessed, self.seconds = self.right + right, [], 0.0


@dataclass
class Drafting:
    """Which answers are drafted. drafter: of those whose requests leave it to the server, while they write alone; None
    where there are none. These are judged together, so that many short answers cost no more than one long one; once
    they have not paid, it is tried anew REST answers later. steady: whether passes over guesses give the bits of steps;
    no answer is guessed ahead where they do not, whoever asks for it."""

    drafter: Lookup | None = None
    steady: bool = True
    pace: Pace = field(default_factory=Pace)
    rested: int = 0

    def of(self, request: Request, cache: Cache) -> Drafts | None:
        """The drafts of an answer over a cache; None where it is not drafted."""
        if not self.steady:
            return None
        if request.draft != "auto":
            return None if request.draft is None else Drafts(request.draft, request.ids, Pace())
        if self.drafter is None or not self._pays():
            return None
        try:
            cache.refuse_drafts()
        except SessionError:
            return None
        return Drafts(self.drafter, request.ids, self.pace, alone=True)

    def _pays(self) -> bool:
        if not self.pace.on:
            self.rested += 1
            if self.rested > REST:
                self.pace, self.rested = Pace(), 0
        return self.pace.on
