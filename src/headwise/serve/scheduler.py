"""Who is read and who writes next: requests are admitted by the bytes they are promised, read in pieces between the
steps of those that write, and write together."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Any

import torch

from headwise.errors import ContextError, HeadwiseError
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.drive import end_tokens, read_pieces, score_pieces
from headwise.seams.transformers.session_door import DECODE_TOKENS
from headwise.serve.lanes import Choice, step_all
from headwise.serve.looks import EVERY, look, scores
from headwise.serve.pieces import cut
from headwise.serve.prefix_folder import PrefixFolder
from headwise.serve.prefixes import Prefixes, why_not_shared
from headwise.serve.promise import Promises, Work, reads_whole
from headwise.serve.request import Failed, Full, Request, Scored, Tell, Ticket, Usage
from headwise.serve.rows import Rows
from headwise.shapes import format_bytes

LOG = logging.getLogger("headwise.serve")
Observe = Callable[[str, float], None]  # a time in seconds, and of what: "queue", "first_token", "between_tokens"


@dataclass(frozen=True)
class Limits:
    """What a scheduler stays within.

    kv_bytes: promised to all sequences together, kept prefixes included. prefix_bytes: of kept prefixes at most.
    waiting: requests in the queue. sequences: that are read or write at once. piece: tokens of a prompt read at once.
    budget: prompt tokens read between two steps of those that write, one piece at least. seconds: from a request's
    arrival to its end.
    """

    kv_bytes: int
    prefix_bytes: int = 0
    waiting: int = 256
    sequences: int = 64
    piece: int = 256
    budget: int = 256
    seconds: float = 3600.0


@dataclass(frozen=True)
class Stats:
    """How things stand. promised, held: bytes of sequences; kept: of prefixes. counts: of what happened since the
    start. unshared: why prefixes were not shared, and how often."""

    waiting: int
    reading: int
    writing: int
    promised: int
    held: int
    kept: int
    counts: dict[str, int]
    unshared: dict[str, int]


class _Active:
    """A request that was admitted: its prompt is being read by `reading`, or its choices write."""

    def __init__(
        self, waiting: _Waiting, cache: Cache, reading: Generator[torch.Tensor, None, None], pieces: list[int]
    ):
        self.ticket, self.each, self.arrived = waiting.ticket, waiting.each, waiting.arrived
        self.cache: Cache | None = cache
        self.reading, self.pieces = reading, pieces  # tokens of the pieces to come
        self.cached = cache.get_seq_length()
        self.choices: list[Choice] = []
        self.held = self.written = 0  # of choices that have ended
        self.newest = 0.0  # when the newest tokens were told

    @property
    def request(self) -> Request:
        return self.ticket.request

    @property
    def sequences(self) -> int:
        """Sequences that are there or will be."""
        return len(self.choices) if not self.pieces else self.request.choices

    @property
    def promised(self) -> int:
        """Bytes that are kept free for it."""
        return self.each * self.sequences

    @property
    def caches(self) -> list[Cache]:
        """The caches that it has by now."""
        return [self.cache] if self.cache is not None else [one.cache for one in self.choices]


@dataclass(frozen=True)
class _Waiting:
    """A request in the queue. each: bytes promised to each of its choices."""

    ticket: Ticket
    each: int
    arrived: float


class Scheduler:
    """Takes requests from any thread; one thread calls `advance` again and again, which does all the work.

    Choices are greedy or drawn from seeds of their own, and forwards keep to `rows`, so that what a request is answered
    depends on nothing that runs beside it. ends: tokens that end an answer, the model's own by default. observe: is
    told of times. prefix_folder: in which kept beginnings survive.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        limits: Limits,
        rows: Rows,
        *,
        ends: Collection[int] | None = None,
        prefix_folder: PrefixFolder | None = None,
        observe: Observe = lambda name, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.tokenizer, self.limits, self.rows = model, tokenizer, limits, rows
        self.observe, self.clock = observe, clock
        self.promises = Promises(model.dtype, attach(model).ropes)
        self.prefixes = Prefixes(limits.prefix_bytes, limits.piece, prefix_folder)
        self.counts, self.unshared = Counter[str](), Counter[str]()
        self._ends = frozenset(end_tokens(model) if ends is None else ends)
        self._queue: deque[_Waiting] = deque()
        self._active: list[_Active] = []
        self._held = 0  # bytes of all sequences after the last step
        self._lock = threading.Lock()  # of the queue, and of the promises

    def submit(self, request: Request, tell: Tell) -> Ticket:
        """Take a request into the queue. ContextError where it can never be answered within the limits or the model's
        positions, Full where the queue is."""
        with self._lock:
            each = self._checked(request)
            if len(self._queue) >= self.limits.waiting:
                raise Full(f"{len(self._queue)} requests are waiting, which is the limit; try again later")
            ticket = Ticket(request, tell)
            self._queue.append(_Waiting(ticket, each, self.clock()))
            self.counts["taken"] += 1
        return ticket

    def _checked(self, request: Request) -> int:
        """Bytes promised to each choice of a request that can be answered."""
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
        whole = reads_whole(request.plan)
        work = Work(prompt, request.max_tokens, prompt if whole else self.limits.piece + DECODE_TOKENS)
        each = self.promises.bytes_of(request.plan, work)
        if each * request.choices > most:
            raise ContextError(
                f"{prompt} tokens of prompt and {request.max_tokens} new ones take up to "
                f"{format_bytes(each * request.choices)} of cache under this recipe, and the server holds "
                f"{format_bytes(most)}; give a recipe that keeps less, a shorter prompt, fewer max_tokens or less n"
            )
        return each

    @torch.no_grad()
    def advance(self) -> bool:
        """Do one step of everything: admit, read, write. False where there was nothing to do."""
        self._release()
        self._admit()
        if not self._active:
            self._held = 0
            return self._write_prefix()
        self._read()
        self._write()
        self._hold_to_promises()
        return True

    def _write_prefix(self) -> bool:
        """Write a kept beginning to its folder, where one waits to be; whether one did. A disk that takes nothing more
        stops no answers."""
        try:
            return self.prefixes.write_next()
        except (HeadwiseError, OSError) as error:
            LOG.warning("prefix_not_written", extra={"told": {"error": str(error)}})
            return True

    def close(self) -> None:
        """Nothing more will be asked: kept beginnings are written to their folder."""
        while self._write_prefix():
            pass

    @property
    def idle(self) -> bool:
        """Whether nothing waits, is read or writes."""
        return not self._queue and not self._active

    def stats(self) -> Stats:
        """How things stand; may be asked for from any thread."""
        active, waiting = list(self._active), len(self._queue)
        reading = sum(bool(one.pieces) for one in active)
        return Stats(
            waiting, reading, sum(len(one.choices) for one in active), sum(one.promised for one in active),
            self._held, self.prefixes.nbytes, dict(self.counts), dict(self.unshared),
        )  # fmt: skip

    def abandon(self, error: Exception) -> None:
        """End everything that waits, is read or writes with an error, and free it."""
        with self._lock:
            waiting, self._queue = list(self._queue), deque()
        for one in waiting:
            self._tell_failed(one.ticket, error)
        for active in list(self._active):
            self._fail(active, error)

    def _release(self) -> None:
        """Let go of requests that nobody waits for, or that took too long."""
        now = self.clock()
        with self._lock:
            waiting = list(self._queue)
            late = [one for one in waiting if now - one.arrived > self.limits.seconds and not one.ticket.cancelled]
            gone = {id(one) for one in waiting if one.ticket.cancelled or one in late}
            self._queue = deque(one for one in waiting if id(one) not in gone)
        self.counts["cancelled"] += len(gone) - len(late)
        for one in late:
            self._tell_failed(one.ticket, self._late())
        for active in list(self._active):
            if active.ticket.cancelled:
                self.counts["cancelled"] += 1
                self._drop(active)
            elif now - active.arrived > self.limits.seconds:
                self._fail(active, self._late())

    def _late(self) -> HeadwiseError:
        return HeadwiseError(f"the request took more than {self.limits.seconds:.0f} s; give fewer max_tokens")

    def _admit(self) -> None:
        """Begin with requests in the order of their arrival, while there is room for what they are promised."""
        while True:
            with self._lock:
                if not self._queue:
                    return
                first = self._queue[0]
                request = first.ticket.request
                sequences = sum(one.sequences for one in self._active) + request.choices
                free = self.limits.kv_bytes - sum(one.promised for one in self._active) - first.each * request.choices
                if sequences > self.limits.sequences or free < 0:
                    return
                self._queue.popleft()
            self.prefixes.shrink(min(free, self.limits.prefix_bytes))
            self.observe("queue", self.clock() - first.arrived)
            self._begin(first)

    def _begin(self, waiting: _Waiting) -> None:
        """Find what of a prompt is known, and be ready to read the rest."""
        request = waiting.ticket.request
        try:
            cache = self._known(request) or Cache(self.model, request.plan)
            pieces = cut(request.ids, None if reads_whole(request.plan) else self.limits.piece, cache.get_seq_length())
        except HeadwiseError as error:
            self._tell_failed(waiting.ticket, error)
            return
        sizes = [piece.shape[1] for piece in pieces]
        read = score_pieces if request.scored else read_pieces
        reading = read(self.model, cache, [piece.to(self.model.device) for piece in pieces])
        active = _Active(waiting, cache, reading, sizes)
        self.counts["read_again"] += active.cached
        self._active.append(active)

    def _known(self, request: Request) -> Cache | None:
        """A cache that has read a beginning of the prompt, where prefixes are kept and the plan allows it."""
        if not self.limits.prefix_bytes or request.scored:
            return None
        if why := why_not_shared(request.plan):
            self.unshared[why] += 1
            return None
        return self.prefixes.find(request.plan, request.ids)

    def _read(self) -> None:
        """Read pieces of prompts, the earliest first, for as many tokens as may come between two steps."""
        budget = self.limits.budget
        for active in [one for one in self._active if one.pieces]:
            while active.pieces and budget > 0:
                budget -= active.pieces[0]
                try:
                    self._read_piece(active)
                except Exception as error:
                    self._fail(active, error)
                    break

    def _read_piece(self, active: _Active) -> None:
        """The next piece of a prompt. After the last one its choices begin."""
        logits = next(active.reading)
        self.counts["read"] += active.pieces.pop(0)
        cache, request = active.cache, active.request
        assert cache is not None, "it is being read"
        self._show(active, cache)
        if request.scored:
            active.ticket.say(Scored(scores(logits, request, cache.get_seq_length())))
        if len(active.pieces) == 1 and self.limits.prefix_bytes and not why_not_shared(request.plan):
            self.prefixes.put(request.plan, request.ids, cache)
        if active.pieces:
            return
        next(active.reading, None)  # the prompt has ended
        caches = [cache, *(cache.fork() for _ in range(request.choices - 1))]
        active.choices = [Choice(place, one, request, self.tokenizer) for place, one in enumerate(caches)]
        active.cache, active.newest = None, self.clock()
        self.observe("first_token", active.newest - active.arrived)
        self._take(active, [(choice, logits[-1]) for choice in active.choices])

    def _write(self) -> None:
        """One token more of every choice."""
        lanes = [(active, choice) for active in self._active for choice in active.choices]
        found = step_all(self.model, self.rows, [choice for _, choice in lanes])
        for active in list(self._active):
            own = [(lane[1], logits) for lane, logits in zip(lanes, found, strict=True) if lane[0] is active]
            wrong = next((logits for _, logits in own if isinstance(logits, Exception)), None)
            if wrong is not None:
                self._fail(active, wrong)
            elif own:
                now = self.clock()
                self.observe("between_tokens", now - active.newest)
                active.newest = now
                self._take(active, [(choice, logits) for choice, logits in own if not isinstance(logits, Exception)])

    def _take(self, active: _Active, found: list[tuple[Choice, torch.Tensor]]) -> None:
        """Tell of the next tokens of some choices, and free what has ended."""
        for choice, logits in found:
            try:
                for event in choice.take(logits, self._ends):
                    active.ticket.say(event)
            except HeadwiseError as error:  # of a form that lets nothing follow
                self._fail(active, error)
                return
            if choice.place == 0 and (choice.ended or not choice.count % EVERY):
                self._show(active, choice.cache)
        ended = [choice for choice in active.choices if choice.ended]
        active.held += sum(choice.cache.nbytes for choice in ended)
        active.written += sum(choice.count for choice in ended)
        self.counts["written"] += len(found)
        active.choices = [choice for choice in active.choices if not choice.ended]
        if not active.choices:
            self._finish(active)

    def _show(self, active: _Active, cache: Cache) -> None:
        """Tell what heads keep, where somebody watches."""
        if active.request.watched and (seen := look(cache)) is not None:
            active.ticket.say(seen)

    def _finish(self, active: _Active) -> None:
        request, dtype = active.request, self.model.dtype
        tokens = len(request.ids) * request.choices + active.written
        dense = request.plan.geometry.dense_bytes(tokens, dtype)
        self._drop(active)
        self.counts["finished"] += 1
        active.ticket.say(Usage(len(request.ids), active.written, active.cached, active.held, dense))

    def _hold_to_promises(self) -> None:
        """Where a request holds more than it was promised, promise it that; where that is more than there is, end the
        newest."""
        self._held = 0
        for active in self._active:
            held = [cache.session.cache_bytes() for cache in active.caches if cache.session is not None]
            self._held += sum(held)
            if max(held, default=0) > active.each:
                self.counts["promises_broken"] += 1
                active.each = max(held)
        while sum(one.promised for one in self._active) > self.limits.kv_bytes:
            newest = max(self._active, key=lambda one: one.arrived)
            self._fail(newest, HeadwiseError("the recipe holds more than was predicted, and there is no room for it"))

    def _fail(self, active: _Active, error: Exception) -> None:
        self._drop(active)
        self._tell_failed(active.ticket, error)

    def _tell_failed(self, ticket: Ticket, error: Exception) -> None:
        self.counts["failed"] += 1
        if not isinstance(error, HeadwiseError):
            error = HeadwiseError(f"the answer failed: {type(error).__name__}")
        ticket.say(Failed(error))

    def _drop(self, active: _Active) -> None:
        """Free all that a request holds."""
        self._active.remove(active)
        active.reading.close()
        active.cache, active.choices = None, []
