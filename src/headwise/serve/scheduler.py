"""Who is read and who writes next: requests are admitted by the bytes they are promised, read in pieces between the
steps of those that write, and write together."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from headwise.errors import HeadwiseError
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.drive import end_tokens
from headwise.serve.active import Active, Predicted, Waiting
from headwise.serve.aside import Aside
from headwise.serve.costs import Costs
from headwise.serve.drafts import Drafting
from headwise.serve.lanes import Choice, step_all
from headwise.serve.limits import Limits, Stats
from headwise.serve.looks import EVERY, look
from headwise.serve.marks import mark_of, read_marked, way_of
from headwise.serve.prefix_folder import PrefixFolder
from headwise.serve.prefixes import Prefixes, why_not_shared
from headwise.serve.promise import Promises
from headwise.serve.request import Failed, Full, Request, Tell, Ticket, Usage
from headwise.serve.rows import Rows
from headwise.serve.stretches import Stretches

__all__ = ["Limits", "Scheduler", "Stats"]
Observe = Callable[[str, float], None]  # a time in seconds, and of what: one of metrics.TIMES


class Scheduler:
    """Takes requests from any thread; one thread calls `advance` again and again, which does all the work.

    Choices are greedy or drawn from seeds of their own, and forwards keep to `rows`, so that what a request is answered
    depends on nothing that runs beside it. ends: tokens that end an answer, the model's own by default. observe: is
    told of times. prefix_folder: in which kept beginnings survive. drafting: which answers are guessed ahead.
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
        drafting: Drafting | None = None,
        observe: Observe = lambda name, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.tokenizer, self.limits, self.rows = model, tokenizer, limits, rows
        self.observe, self.clock = observe, clock
        self.predicted = Predicted(Promises(model.dtype, attach(model).ropes), limits)
        self.costs, self.drafting = Costs(), drafting or Drafting()
        self.aside = Aside(model, self.costs, clock)
        self.prefixes = Prefixes(limits.prefix_bytes, limits.piece, prefix_folder)
        self.counts, self.unshared = Counter[str](), Counter[str]()
        self._ends = frozenset(end_tokens(model) if ends is None else ends)
        self._queue: deque[Waiting] = deque()
        self._active: list[Active] = []
        self._held = 0  # bytes of all sequences after the last step
        self._lock = threading.Lock()  # of the queue, and of the promises

    def submit(self, request: Request, tell: Tell) -> Ticket:
        """Take a request into the queue. ContextError where it can never be answered within the limits or the model's
        positions, Full where the queue is."""
        with self._lock:
            begins = self.predicted.begins(request)
            if len(self._queue) >= self.limits.waiting:
                raise Full(f"{len(self._queue)} requests are waiting, which is the limit; try again later")
            ticket = Ticket(request, tell)
            self._queue.append(Waiting(ticket, begins, self.clock()))
            self.counts["taken"] += 1
        return ticket

    @torch.no_grad()
    def advance(self) -> bool:
        """Do one step of everything: admit, read, write. False where there was nothing to do."""
        self._release()
        self._admit()
        if not self._active:
            self._held = 0
            return self.prefixes.write_next()
        self._read()
        self._promise_more()
        self._write()
        self._hold_to_promises()
        return True

    def close(self) -> None:
        """Nothing more will be asked: kept beginnings are written to their folder."""
        while self.prefixes.write_next():
            pass
        self.aside.close()

    @property
    def idle(self) -> bool:
        """Whether nothing waits, is read or writes."""
        return not self._queue and not self._active and not self.aside.requests

    def stats(self) -> Stats:
        """How things stand; may be asked for from any thread."""
        active, waiting = list(self._active), len(self._queue)
        reading = sum(bool(one.pieces) for one in active)
        return Stats(
            waiting, len(self.aside.requests), reading, sum(len(one.choices) for one in active),
            sum(one.promised for one in active), self._held, self.prefixes.nbytes,
            dict(self.counts), dict(self.unshared),
        )  # fmt: skip

    def abandon(self, error: Exception) -> None:
        """End everything that waits, is read or writes with an error, and free it."""
        with self._lock:
            waiting, self._queue = list(self._queue), deque()
        for one in waiting:
            self._tell_failed(one.ticket, error)
        for active in [*self._active, *self.aside.requests]:
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
        too_late = HeadwiseError(f"the request took more than {self.limits.seconds:.0f} s; give fewer max_tokens")
        for one in late:
            self._tell_failed(one.ticket, too_late)
        for active in [*self._active, *self.aside.requests]:
            if active.ticket.cancelled:
                self.counts["cancelled"] += 1
                self._drop(active)
            elif now - active.arrived > self.limits.seconds:
                self._fail(active, too_late)

    def _admit(self) -> None:
        """Begin with requests in the order of their arrival, while there is room for what they are promised; first of
        all go on with those that were put aside."""
        while self.aside.requests:
            first = self.aside.requests[0]
            if not self._fits(first.sequences, first.bytes.most(first.sequences)):
                return
            active, whole = self.aside.take()
            self._active = sorted([*self._active, active], key=lambda one: one.arrived)
            if not whole:
                self._begin(active)
        while True:
            with self._lock:
                if not self._queue:
                    return
                waiting = self._queue[0]
                choices = waiting.ticket.request.choices
                if not self._fits(choices, waiting.bytes.most(choices)):
                    return
                self._queue.popleft()
            self.observe("queue", self.clock() - waiting.arrived)
            active = Active(waiting, self.limits.ahead)
            self._active.append(active)
            self._begin(active)

    def _fits(self, sequences: int, needed: int) -> bool:
        """Whether there is room for more; kept prefixes make some."""
        running = sum(one.sequences for one in self._active)
        free = self.limits.kv_bytes - sum(one.promised for one in self._active) - needed
        if running + sequences > self.limits.sequences or free < 0:
            return False
        self.prefixes.shrink(min(free, self.limits.prefix_bytes))
        return True

    def _begin(self, active: Active) -> None:
        """Find what of a prompt is known, and be ready to read the rest."""
        request = active.request
        active.mark = mark_of(request.evict_after, len(request.ids), self.limits.piece)
        try:
            cache = self._known(active) or Cache(self.model, request.plan, gather=active.bytes.gathers)
            cuts = active.cut(cache.get_seq_length(), self.limits)
        except HeadwiseError as error:
            self._fail(active, error)
            return
        pieces = [one.to(self.model.device) for one in cuts]
        reading = read_marked(way_of(request), self.model, cache, pieces, active.mark)
        self.counts["read_again"] += cache.get_seq_length()
        if not active.choices:
            active.cached = cache.get_seq_length()
        active.read(cache, Stretches(cache, reading), [piece.shape[1] for piece in pieces])

    def _known(self, active: Active) -> Cache | None:
        """A cache that has read a beginning of the prompt, where prefixes are kept and the plan allows it."""
        request = active.request
        if not self.limits.prefix_bytes or request.reads_all:
            return None
        if why := self._unshared(active):
            self.unshared[why] += 1
            return None
        if active.mark:
            return self.prefixes.find_evicted(request.plan, request.ids, active.mark)
        return self.prefixes.find(request.plan, request.ids)

    def _unshared(self, active: Active) -> str:
        if active.mark:
            return "" if active.bytes.gathers else "too long to be held before it is evicted of"
        return why_not_shared(active.request.plan, active.bytes.gathers, self.limits.piece)

    def _read(self) -> None:
        """Read prompts, the earliest first, for as many tokens and as long as those that write may wait."""
        budget, start = self.limits.budget, self.clock()
        writing = any(one.choices and not one.pieces for one in self._active)
        reading = [one for one in self._active if one.pieces]

        def late() -> bool:
            return writing and self.clock() - start >= self.limits.stall

        for active in reading:
            while active.pieces and budget > 0:
                if budget < self.limits.budget and late():
                    break
                budget -= self._read_some(active, late)
        if writing and reading:
            self.observe("stall", self.clock() - start)

    def _read_some(self, active: Active, late: Callable[[], bool]) -> int:
        """Go on with a prompt until a piece is read or it is late; the tokens that were read, or all there are to read
        where it ends here."""
        since, tokens = self.clock(), active.pieces[0]
        assert active.reading is not None, "it is being read"
        try:
            logits = active.reading.go(late)
            active.took += self.clock() - since
            if logits is None:
                self.counts["paused"] += 1
                return self.limits.budget
            self.costs.token.note(active.took / tokens)
            active.took = 0.0
            self._take_piece(active, logits)
        except Exception as error:
            self._fail(active, error)
        return tokens

    def _take_piece(self, active: Active, logits: torch.Tensor) -> None:
        """A piece of a prompt was read, after which there are `logits`. After the last one its choices begin."""
        self.counts["read"] += active.pieces.pop(0)
        cache, request = active.cache, active.request
        assert cache is not None and active.reading is not None, "it is being read"
        self._show(active, cache)
        if (told := active.told_of(logits, cache.get_seq_length())) is not None:
            active.ticket.say(told)
        ends = cache.get_seq_length() == active.mark if active.mark else len(active.pieces) == 1
        if ends and self.limits.prefix_bytes and not self._unshared(active):
            self.prefixes.put(request.plan, request.ids, cache, bool(active.mark))
        if active.pieces:
            return
        active.reading.go(bool)  # the prompt has ended
        if request.pooled is not None:
            self._finish(active)
        else:
            self._choose(active, cache, logits[-1])

    def _choose(self, active: Active, cache: Cache, logits: torch.Tensor) -> None:
        """A prompt was read into `cache`, after which there are logits [vocab]: its choices begin, or go on."""
        active.cache, active.reading = None, None
        caches = [cache, *(cache.fork() for _ in range(active.sequences - 1))]
        if active.choices:
            for choice, one in zip(active.choices, caches, strict=True):
                choice.rewind(one)
            return
        request, each = active.request, enumerate(caches)
        active.choices = [Choice(place, one, request, self.tokenizer, self.drafting) for place, one in each]
        active.newest = self.clock()
        self.observe("first_token", active.newest - active.arrived)
        self._take(active, [logits[None]] * len(active.choices))

    def _promise_more(self) -> None:
        """Promise those that have come to the end of what they were granted more, and make room for it."""
        near = [one for one in self._active if one.granted - one.furthest <= self.rows.most]
        if any([self.predicted.promise_more(one, self.rows.most) for one in near]):
            self._make_room()

    def _make_room(self) -> int:
        """Where more is promised than there is, put the newest aside; kept prefixes go before. The bytes that one which
        is alone is promised beyond what there is."""
        while (over := sum(one.promised for one in self._active) - self.limits.kv_bytes) > 0 and len(self._active) > 1:
            self._put_aside(max(self._active, key=lambda one: one.arrived))
        self.prefixes.shrink(max(0, min(-over, self.limits.prefix_bytes)))
        return max(0, over)

    def _put_aside(self, active: Active) -> None:
        """Let a request wait until there is room for it again. What was told of it is not told again."""
        self._active.remove(active)
        self.counts["put_aside_in_files" if self.aside.put(active) else "put_aside_to_be_read_again"] += 1

    def _write(self) -> None:
        """One token more of every choice."""
        writing = [one for one in self._active if one.choices and not one.pieces]
        if not writing:
            return
        since, place = self.clock(), 0
        choices = [choice for active in writing for choice in active.choices]
        found = step_all(self.model, self.rows, choices, self.clock)
        self.costs.step.note(self.clock() - since)
        for active in writing:
            own = found[place : place + len(active.choices)]
            place += len(own)
            right = [one for one in own if not isinstance(one, Exception)]
            if len(right) < len(own):
                self._fail(active, next(one for one in own if isinstance(one, Exception)))
                continue
            if not active.choices[0].behind:  # else nothing new is told
                now = self.clock()
                self.observe("between_tokens", now - active.newest)
                active.newest = now
            self._take(active, right)

    def _take(self, active: Active, found: Sequence[torch.Tensor]) -> None:
        """Tell of the next tokens of all choices, by the logits [t, vocab] of each, and free what has ended."""
        ended: list[Choice] = []
        for choice, logits in zip(active.choices, found, strict=True):
            before = len(choice.written)
            try:
                for event in choice.follow(logits, self._ends):
                    active.ticket.say(event)
            except HeadwiseError as error:  # of a form that lets nothing follow
                self._fail(active, error)
                return
            now = len(choice.written)
            self.counts["written"] += now - before
            active.furthest = max(active.furthest, now)
            if choice.place == 0 and (choice.ended or now // EVERY > before // EVERY):
                self._show(active, choice.cache)
            if choice.ended:
                ended.append(choice)
        if ended and not active.free(ended):
            self._finish(active)

    def _show(self, active: Active, cache: Cache) -> None:
        """Tell what heads keep, where somebody watches."""
        if active.request.watched and (seen := look(cache)) is not None:
            active.ticket.say(seen)

    def _finish(self, active: Active) -> None:
        request, dtype = active.request, self.model.dtype
        tokens = len(request.ids) * request.choices + active.written
        dense = request.plan.geometry.dense_bytes(tokens, dtype)
        self._drop(active)
        self.counts["finished"] += 1
        if (guesses := active.guesses) is not None:
            self.counts.update(guesses.counts)
        active.ticket.say(Usage(len(request.ids), active.written, active.cached, active.held, dense, guesses))

    def _hold_to_promises(self) -> None:
        """Where a request holds more than it was promised, promise it that; where that is more than there is, others
        are put aside, and one that is alone ends."""
        self._held = 0
        for active in self._active:
            held = self._held_by(active)
            self._held += sum(held)
            most = active.bytes.reading if active.pieces else active.bytes.each
            if max(held, default=0) > most:
                self.counts["promises_broken"] += 1
                active.bytes = replace(active.bytes, reading=max(held), each=max(held))
        if self._make_room():
            self._fail(self._active[0], HeadwiseError("the recipe holds more than was predicted, and than there is"))

    def _held_by(self, active: Active) -> list[int]:
        """Bytes that each cache of a request holds; those of choices were counted in their newest step."""
        if active.cache is not None:
            return [0 if active.cache.session is None else active.cache.session.cache_bytes()]
        return [one.cache.session.ledger.held_bytes for one in active.choices if one.cache.session is not None]

    def _fail(self, active: Active, error: Exception) -> None:
        self._drop(active)
        self._tell_failed(active.ticket, error)

    def _tell_failed(self, ticket: Ticket, error: Exception) -> None:
        self.counts["failed"] += 1
        if not isinstance(error, HeadwiseError):
            error = HeadwiseError(f"the answer failed: {type(error).__name__}")
        ticket.say(Failed(error))

    def _drop(self, active: Active) -> None:
        """Free all that a request holds."""
        if active in self._active:
            self._active.remove(active)
        else:
            self.aside.forget(active)
        active.stop_reading()
        active.choices = []
