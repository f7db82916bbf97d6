"""Tokens become text as they come: whole characters alone, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwise.seams.transformers.decoded import decoder_of

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for a part of a character
LONGEST_PART = 4  # tokens that a character may be made of before it is taken for a broken one
REMEMBERED = 8  # tokens whose text is written anew with each that comes, at most


class Writing:
    """The text of one choice. Text is told once it cannot change any more: when its characters are whole and no stop
    string may still come of its end."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._decode, self.stops = decoder_of(tokenizer), tuple(stops)
        self._ids: list[int] = []  # the last tokens: those before `_from` are told, and decide how the next begin
        self._from, self._told = 0, ""  # how many these are, and their text
        self._held = ""  # written, but maybe the beginning of a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that may be told with this token; `stopped` is True from the first stop string on."""
        self._ids.append(token)
        after = self._decode(self._ids)
        new = after[len(self._told) :]
        if new.endswith(UNFINISHED) and len(self._ids) - self._from < LONGEST_PART:
            return ""
        if len(self._ids) >= REMEMBERED:
            self._ids = self._ids[self._from :]
            after = self._decode(self._ids)
        self._from, self._told = len(self._ids), after
        return self._pass(new)

    def end(self) -> str:
        """What is left to tell when no more tokens come."""
        told = self._pass(self._decode(self._ids)[len(self._told) :])
        if not self.stopped:
            told, self._held = told + self._held, ""
        return told

    def _pass(self, new: str) -> str:
        """Of text that was written: what of it, and of what was held before, can be told."""
        if not self.stops:
            return new
        text = self._held + new
        found = min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.stopped, self._held = True, ""
            return text[:found]
        keep = max(
            (size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
