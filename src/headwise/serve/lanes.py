"""Choices that write, and the forwards in which all of them read their newest token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.together import step_together
from headwise.serve.drafts import Drafting, Drafts
from headwise.serve.request import Ended, Piece, Reason, Request
from headwise.serve.rows import Rows
from headwise.serve.sampling import Sampler, chances
from headwise.serve.text import Writing


class Choice:
    """One answer to a request while it is written over a cache of its own. written: its tokens, of which the newest
    `behind` wait until the cache has read those before them once more."""

    def __init__(self, place: int, cache: Cache, request: Request, tokenizer: Any, drafting: Drafting) -> None:
        self.place, self.cache, self.request = place, cache, request
        self.sampler, self.writing = Sampler(request.sampling, place), Writing(tokenizer, request.stops)
        self.guide = None if request.form is None else request.form.guide()
        self.drafts = drafting.of(request, cache)
        self.written: list[int] = []
        self.behind, self.ended = 0, False

    @property
    def count(self) -> int:
        """Tokens written."""
        return len(self.written)

    @property
    def newest(self) -> int:
        """The token that the cache reads next."""
        return self.written[-1 - self.behind]

    def rewind(self, cache: Cache) -> None:
        """Go on over a cache that has read the prompt alone."""
        self.cache, self.behind = cache, self.count - 1

    def follow(self, found: torch.Tensor, ends: Collection[int]) -> Iterator[Piece | Ended]:
        """Write what follows by `found [t, vocab]`, the logits after the newest token and each drafted one: as many
        tokens as were guessed right, and one. ends: see `take`."""
        guessed = [] if self.drafts is None else self.drafts.guessed
        right = 0
        for place, logits in enumerate(found.unbind()):
            yield from self.take(logits, ends)
            if self.ended or place >= len(guessed) or self.newest != guessed[place]:
                break
            right += 1
        if self.drafts is not None and guessed:
            self.cache.accept(range(right + 1))
            self.drafts.accepted(right)

    def take(self, logits: torch.Tensor, ends: Collection[int]) -> list[Piece | Ended]:
        """Write the token that follows by `logits [vocab]`, or pass to the next one that was written before, of which
        there is nothing to tell; ends: tokens that end an answer and are not told.

        HeadwiseError where the form of the answer lets nothing follow.
        """
        if self.behind:
            self.behind -= 1
            return []
        token = self.sampler.draw(logits if self.guide is None else self.guide.allowed(logits))
        self.written.append(token)
        if token in ends:
            return [self._end("stop")]
        complete = self.guide is not None and self.guide.take(token)
        top = self.request.logprobs
        told = Piece(self.place, self.writing.add(token), token, () if top is None else chances(logits, token, top))
        if self.writing.stopped or complete:
            return [told, self._end("stop")]
        if len(self.written) == self.request.max_tokens:
            return [told, self._end("length")]
        return [told]

    def _end(self, reason: Reason) -> Ended:
        """It is complete: what was left to tell, which may still hold a stop."""
        self.ended, rest = True, "" if self.writing.stopped else self.writing.end()
        return Ended(self.place, rest, "stop" if self.writing.stopped else reason)


def step_all(
    model: PreTrainedModel, rows: Rows, choices: Sequence[Choice], clock: Callable[[], float]
) -> list[torch.Tensor | Exception]:
    """Let every choice's cache read its newest token, in as few forwards as `rows` allows, those with a draft each in
    one of its own: the logits [t, vocab] after it and what was drafted, or the error that this choice alone has met."""
    found: dict[int, torch.Tensor | Exception] = {}
    drafted = [(place, one.drafts) for place, one in enumerate(choices) if one.drafts is not None]
    for place, drafts in drafted:
        if len(choices) == 1 or not drafts.alone:
            since = clock()
            if drafts.guess(choices[place], rows):
                found[place] = _verify(model, choices[place], drafts)
            drafts.seconds += clock() - since
    plain, since = [place for place in range(len(choices)) if place not in found], clock()
    for start in range(0, len(plain), rows.most):
        some = plain[start : start + rows.most]
        found |= zip(some, _step_some(model, rows, [choices[place] for place in some]), strict=True)
    for place, drafts in drafted:
        if place in plain and (len(choices) == 1 or not drafts.alone):
            drafts.pace.plain((clock() - since) / len(plain))
    return [found[place] for place in range(len(choices))]


def _verify(model: PreTrainedModel, choice: Choice, drafts: Drafts) -> torch.Tensor | Exception:
    """The logits [t, vocab] after the newest token of a choice and each of its guesses, which wait to be accepted."""
    ids = torch.tensor([[choice.newest, *drafts.guessed]], device=model.device)
    try:
        with choice.cache.drafted(singly=True):
            logits: torch.Tensor = forward(model, choice.cache, ids).logits[0]
    except Exception as error:
        return error
    return logits


def _step_some(model: PreTrainedModel, rows: Rows, choices: Sequence[Choice]) -> list[torch.Tensor | Exception]:
    """The logits [1, vocab] in one forward. Where it fails, all go back and each goes on in one of its own, so that an
    error is nobody's but the one's who makes it."""
    caches, tokens = [one.cache for one in choices], [one.newest for one in choices]
    try:
        return [row[None] for row in step_together(model, caches, tokens, rows.least)]
    except Exception as error:
        if len(choices) == 1:
            return [error]
    return [found for one in choices for found in _step_some(model, rows, [one])]
