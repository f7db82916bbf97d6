"""Choices that write, and the forwards in which all of them read their newest token."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.together import step_together
from headwise.serve.request import Ended, Piece, Request
from headwise.serve.rows import Rows
from headwise.serve.sampling import Sampler, chances
from headwise.serve.text import Writing


class Choice:
    """One answer to a request while it is written over a cache of its own. newest: its last token, which the cache
    reads next; count: tokens written."""

    def __init__(self, place: int, cache: Cache, request: Request, tokenizer: Any) -> None:
        self.place, self.cache, self.request = place, cache, request
        self.sampler, self.writing = Sampler(request.sampling, place), Writing(tokenizer, request.stops)
        self.guide = None if request.form is None else request.form.guide()
        self.newest, self.count, self.ended = -1, 0, False

    def take(self, logits: torch.Tensor, ends: Collection[int]) -> Iterator[Piece | Ended]:
        """Write the token that follows by `logits [vocab]`; ends: tokens that end an answer and are not told.

        HeadwiseError where the form of the answer lets nothing follow.
        """
        self.newest = token = self.sampler.draw(logits if self.guide is None else self.guide.allowed(logits))
        self.count += 1
        if token in ends:
            self.ended = True
            yield Ended(self.place, self.writing.end(), "stop")
            return
        complete = self.guide is not None and self.guide.take(token)
        top = self.request.logprobs
        yield Piece(self.place, self.writing.add(token), token, () if top is None else chances(logits, token, top))
        if self.writing.stopped:
            self.ended = True
            yield Ended(self.place, "", "stop")
        elif complete:
            self.ended = True
            yield Ended(self.place, self.writing.end(), "stop")
        elif self.count == self.request.max_tokens:
            self.ended = True
            rest = self.writing.end()
            yield Ended(self.place, rest, "stop" if self.writing.stopped else "length")


def step_all(model: PreTrainedModel, rows: Rows, choices: Sequence[Choice]) -> list[torch.Tensor | Exception]:
    """Let every choice's cache read its newest token, in as few forwards as `rows` allows: the logits [vocab] after it,
    or the error that this choice alone has met."""
    found: list[torch.Tensor | Exception] = []
    for start in range(0, len(choices), rows.most):
        found += _step_some(model, rows, choices[start : start + rows.most])
    return found


def _step_some(model: PreTrainedModel, rows: Rows, choices: Sequence[Choice]) -> list[torch.Tensor | Exception]:
    """The same in one forward. Where it fails, all go back and each goes on in one of its own, so that an error is
    nobody's but the one's who makes it."""
    caches, tokens = [one.cache for one in choices], [one.newest for one in choices]
    try:
        return list(step_together(model, caches, tokens, rows.least))
    except Exception as error:
        if len(choices) == 1:
            return [error]
    return [found for one in choices for found in _step_some(model, rows, [one])]
