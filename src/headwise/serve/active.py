"""Requests on their way: in the queue, once they are admitted, and while they make room for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headwise.errors import ContextError
from headwise.seams.transformers.cache import Cache
from headwise.serve.drafts import Drafts
from headwise.serve.lanes import Choice
from headwise.serve.limits import Limits
from headwise.serve.looks import scores
from headwise.serve.pieces import cut
from headwise.serve.promise import Promises, Work, gathers, reads_alike, reads_whole
from headwise.serve.request import Embedded, Guesses, Request, Scored, Ticket
from headwise.serve.stretches import Stretches
from headwise.shapes import format_bytes


@dataclass(frozen=True)
class Bytes:
    """What a request may hold. reading: while its prompt is read; each: of every choice that writes. gathers: whether
    its prompt is read to its end before its plan evicts of it."""

    reading: int
    each: int
    gathers: bool

    def most(self, choices: int) -> int:
        """Of all choices, at any time."""
        return max(self.reading, self.each * choices)


class Predicted:
    """Bytes of requests, told by `promises` within `limits`."""

    def __init__(self, promises: Promises, limits: Limits) -> None:
        self.promises, self.limits = promises, limits

    def bytes_of(self, request: Request, new: int) -> Bytes:
        """Of a request whose choices write `new` tokens each. Its prompt is gathered where a plan evicts, does not see
        it in one piece, and all of it can be held."""
        plan, prompt = request.plan, len(request.ids)
        if gathers(plan):
            whole = self.promises.bytes_of(plan, Work(prompt, 0, prompt))
            if whole <= self.limits.kv_bytes:
                return Bytes(whole, self.promises.bytes_of(plan, Work(prompt, new, 1)), True)
        read = self.limits.piece * (self.limits.joined if reads_alike(plan, False) else 1)
        piece = prompt if reads_whole(plan) else read
        each = self.promises.bytes_of(plan, Work(prompt, new, piece))
        return Bytes(each, each, False)

    def begins(self, request: Request) -> Bytes:
        """What a request that can be answered is promised to begin with. ContextError for any other."""
        prompt, longest, most = len(request.ids), request.plan.longest, self.limits.kv_bytes
        if not prompt:
            raise ContextError("the prompt is empty; give at least one token")
        if longest is not None and prompt + request.max_tokens - 1 > longest:
            raise ContextError(
                f"{prompt} tokens of prompt and {request.max_tokens} new ones are more than the {longest} positions "
                f"the model was trained on; give a shorter prompt, or max_tokens of {longest - prompt + 1} or fewer"
            )
        if request.choices > self.limits.sequences:
            raise ContextError(
                f"n={request.choices} is more than the {self.limits.sequences} sequences that run at once"
            )
        needed = self.bytes_of(request, request.max_tokens).most(request.choices)
        if needed > most:
            raise ContextError(
                f"{prompt} tokens of prompt and {request.max_tokens} new ones take up to {format_bytes(needed)} of "
                f"cache under this recipe, and the server holds {format_bytes(most)}; give a recipe that keeps less, "
                "a shorter prompt, fewer max_tokens or less n"
            )
        return self.bytes_of(request, min(self.limits.ahead, request.max_tokens))

    def promise_more(self, active: Active, drafted: int) -> bool:
        """Grant an active request that writes more tokens, where the next step, of so many where it is drafted, may
        come beyond what it was granted; whether it was."""
        request, step = active.request, 1 if active.request.draft is None else drafted
        if active.granted >= min(request.max_tokens, active.furthest + step) or not active.choices or active.pieces:
            return False
        active.granted = min(request.max_tokens, active.furthest + step - 1 + self.limits.ahead)
        active.bytes = self.bytes_of(request, active.granted)
        return True


@dataclass(frozen=True)
class Waiting:
    """A request in the queue, and the bytes that it is promised to begin with."""

    ticket: Ticket
    bytes: Bytes
    arrived: float


class Active:
    """A request that was admitted: its prompt is being read by `reading`, or its choices write. granted: tokens that
    each choice may write within `bytes`."""

    def __init__(self, waiting: Waiting, granted: int) -> None:
        self.ticket, self.bytes, self.arrived, self.granted = waiting.ticket, waiting.bytes, waiting.arrived, granted
        self.cache: Cache | None = None
        self.reading: Stretches | None = None
        self.pieces: list[int] = []  # tokens of the pieces to come
        self.cached = self.told = 0  # tokens of the prompt that were known, or of which was told
        self.pool: torch.Tensor | None = None  # what came of them, where their states are pooled
        self.mark = 0  # tokens of the prompt that are evicted of by themselves
        self.choices: list[Choice] = []
        self.held = self.written = 0  # of choices that have ended
        self.drafts: list[Drafts] = []  # of the same
        self.furthest = 0  # tokens of the choice that has written most
        self.newest = self.took = 0.0  # when the newest tokens were told; seconds that the next piece took so far

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.ticket.request

    def read(self, cache: Cache, reading: Stretches, pieces: list[int]) -> None:
        """Begin to read a prompt into a cache that may have read a beginning of it."""
        self.cache, self.reading, self.pieces, self.took = cache, reading, pieces, 0.0

    def told_of(self, found: torch.Tensor, read: int) -> Scored | Embedded | None:
        """What is told of the newest piece of a prompt of which `read` tokens are read now, by the logits or states
        [t, ...] that were found: nothing twice, where it is read again."""
        request = self.request
        if read <= self.told:
            return None
        self.told = read
        if request.scored:
            return Scored(scores(found, request, read))
        if request.pooled is None:
            return None
        self.pool = request.pooled.add(self.pool, found)
        if read < len(request.ids):
            return None
        return Embedded(tuple(request.pooled.vector(self.pool, read).tolist()))

    def cut(self, start: int, limits: Limits) -> list[torch.Tensor]:
        """The tokens of its prompt from `start` on, as forwards read them: several pieces at once where none of them is
        looked at for itself."""
        request, piece = self.request, None if reads_whole(self.request.plan) else limits.piece
        alike = reads_alike(request.plan, self.bytes.gathers) and not request.reads_all and not self.mark
        return cut(request.ids, piece, start, limits.joined if alike else 1)

    @property
    def sequences(self) -> int:
        """Sequences that are there or will be."""
        return len(self.choices) or self.request.choices

    @property
    def promised(self) -> int:
        """Bytes that are kept free for it."""
        sequences = len(self.choices) or self.ticket.request.choices
        return max(self.bytes.reading if self.pieces else 0, self.bytes.each * sequences)

    @property
    def caches(self) -> list[Cache]:
        """The caches that it has by now."""
        return [self.cache] if self.cache is not None else [one.cache for one in self.choices]

    def free(self, ended: Sequence[Choice]) -> list[Choice]:
        """Free choices that have ended; those that go on."""
        self.held += sum(choice.cache.nbytes for choice in ended)
        self.written += sum(choice.count for choice in ended)
        self.drafts += [choice.drafts for choice in ended if choice.drafts is not None]
        self.choices = [choice for choice in self.choices if not choice.ended]
        return self.choices

    @property
    def guesses(self) -> Guesses | None:
        """What became of the drafts of choices that have ended; None where nothing was drafted."""
        if not any(one.passes for one in self.drafts):
            return None
        off = next((one.pace.remark for one in self.drafts if not one.pace.on), None)
        return Guesses(sum(one.proposed for one in self.drafts), sum(one.right for one in self.drafts), off)

    def stop_reading(self) -> None:
        """Forget what was read of a prompt that is not read to its end."""
        if self.reading is not None:
            self.reading.close()
        self.cache, self.reading, self.pieces = None, None, []
