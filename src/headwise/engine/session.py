"""The one mutable conductor: follows a plan step by step, layer by layer. Tensors in, attention out; knows no model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial

import torch

from headwise.cache.journal import Checkpoint
from headwise.cache.kv_store import KVStore
from headwise.cache.states import States
from headwise.cache.tiers import Tier
from headwise.engine.announced import live_counts, refuse_chunks, refuse_length, without_sinks
from headwise.engine.budget import in_tokens
from headwise.engine.demote import meet_new
from headwise.engine.drafted import Drafted, read_drafted, refuse_drafted
from headwise.engine.elsewhere import absorb, follow, hand_back
from headwise.engine.group import DECODE_INTERVAL, Group, Phase, Step
from headwise.engine.layers import Taken, fork_groups, lanes_of, layer_reader, new_groups, of_all_heads, read_groups
from headwise.engine.ledger import Ledger
from headwise.engine.memory import Memories
from headwise.engine.read import Reading, count_mass, learn, read
from headwise.engine.rehearsal import Rehearsals, bring_down
from headwise.engine.session_report import positions, remarks, report
from headwise.engine.steered import refuse_marks
from headwise.engine.undo import checkpoint, go_back
from headwise.errors import SessionError
from headwise.forms import Attended, Scoring
from headwise.kernels.dispatch import NOTE
from headwise.plan import Plan
from headwise.shapes import Mark, Rope, check_marks, check_seed, want


class Session:
    """Keys and values of `rows` sequences under one plan. `seen` counts tokens passed, `lengths` tokens stored.

    counted: the plan with budgets in bytes as numbers of tokens. PlanError where so few bytes cannot be held.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        rows: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        ropes: Sequence[Rope | None] | None = None,
        marks: Iterable[Mark] = (),
        tier: Tier | None = None,
    ) -> None:
        if rows < 1:
            raise SessionError(f"a session needs at least one row, got {rows}")
        check_seed(seed)
        self.plan, self.rows, self.dtype, self.device, self.seed = plan, rows, dtype, torch.device(device), seed
        self.tier = tier  # of the layers that attend to everything; windows are short
        self.gathers = False  # whether a prompt in chunks is read to its end before recipes evict of it
        self.ropes = tuple(ropes) if ropes is not None else (None,) * len(plan.geometry.layers)
        self.marks = tuple(sorted(marks, key=lambda mark: mark.start))
        check_marks(self.marks, rows)
        self.seen, self.passed = [0] * rows, 0  # passed: columns of the batch, padding included
        self.ledger, self.memories, self.states = Ledger(), Memories(), States()
        self.counted = in_tokens(plan, dtype)
        self.layers, self.spans = new_groups(self.counted, rows, dtype, self.device, self.ropes, tier)
        self.rehearsals = Rehearsals(self.groups, rows)
        self.readers = [layer_reader(groups) for groups in self.layers]
        self.opened: Step | None = None
        self._open: set[int] = set()
        self._later: list[tuple[Reading, Group, list[torch.Tensor]]] = []  # evictions that wait for a layer's readers
        self._undo: Checkpoint | None = None
        self.drafted: Drafted | None = None  # tokens that were read and are not accepted yet
        self.clock = {"steps": 0, "since_eviction": 0}

    @property
    def groups(self) -> list[Group]:
        """All groups of all layers."""
        return [group for layer in self.layers for group in layer]

    def begin(
        self,
        tokens: int,
        phase: Phase,
        live: torch.Tensor | None = None,
        total: int | None = None,
        undo: bool = True,
        ids: torch.Tensor | None = None,
    ) -> None:
        """Announce a step of all layers: `tokens` new ones per row.

        live: bool [b, tokens], False for left padding. total: final prompt length when a prompt comes in chunks;
        budgets refer to it. undo: whether `abort` can take the step back; what it takes away is then held until
        `commit` or the next step. ids: of the tokens [b, tokens], for methods that have the prompt read again. Raises
        SessionError when padding is on the right or a step is still open.
        """
        if self.opened is not None:
            raise SessionError(
                f"step {self.opened.number} never reached layers {sorted(self._open)}; call abort() to go back, and "
                "see that every layer of the model runs through this session"
            )
        refuse_drafted(self, "go on")
        if tokens < 1:
            raise SessionError("a step needs at least one new token; the prompt is empty")
        counts = live_counts(self.rows, tokens, live)
        seen = tuple(have + more for have, more in zip(self.seen, counts, strict=True))
        longest = max(*seen, total or 0)
        self.rehearsals.refuse(phase, tokens, ids)
        refuse_length(self.plan, self.groups, longest, tokens, self.rehearsals.again(phase, longest, self.seen))
        if phase == "prefill" and total is not None and total > max(seen):
            refuse_chunks(self.groups)
        if not any(self.seen) and phase == "prefill":
            refuse_marks(self.plan, self.marks, [max(have, total or 0) for have in seen])
        self._undo = None  # at once: an interrupted `begin` must not take back the step before
        if undo:
            self._undo = checkpoint(self)
        since = self.clock["since_eviction"] + tokens
        evicts = phase == "prefill" or since >= DECODE_INTERVAL
        self.clock["since_eviction"] = 0 if evicts else since
        self.passed += tokens
        totals = tuple(max(have, (total or 0) - (self.passed - have)) for have in seen)  # without the row's padding
        self.opened = Step(self.clock["steps"], phase, tokens, counts, seen, totals, evicts)
        self.rehearsals.take(self.opened, ids)
        self.seen = list(seen)
        self._open, self._later = {*self.plan.geometry.attending, *self.plan.geometry.reading}, []

    def step(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        """Attention of one layer in the announced step: q [b, H, t, d], k [b, h, t, d], v [b, h, t, e] -> [b, H, t, e].

        Stores the new keys and values, reads what the recipe lets the queries read, and evicts when the step says so.
        Rows of padding give 0.
        """
        reading = self.turn(layer, scoring)
        queries = self.grouped(reading.step, layer, q, k, v)
        token = NOTE.set(partial(self.ledger.note, reading.step.phase))
        try:
            if self.drafted is not None:
                out = read_drafted(self, reading, layer, queries, k, v)
            else:
                read_and_keep = self._decode if reading.step.phase == "decode" else self._prefill
                out = read_and_keep(reading, layer, queries, k, v)
        finally:
            NOTE.reset(token)
        self.done(reading.step, layer)
        return out.unflatten(0, (self.rows, -1)).flatten(1, 2)

    def _prefill(self, reading: Reading, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """A chunk of prompt, group after group, so that one evicts before the next one stores: q [b, h, g, t, d],
        k [b, h, t, d], v [b, h, t, e] -> [b * h, g, t, e]."""
        parts = []
        for group in self.layers[layer]:
            own = lanes_of(group, q), lanes_of(group, k), lanes_of(group, v)
            self._take_in(reading, group, *own)
            attended = read(reading, group, *own)
            self._after_read(reading, group, own[0], attended.lse if group.keeps_lse else None)
            parts.append(attended)
        return of_all_heads(self.layers[layer], parts).out

    def _decode(self, reading: Reading, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """A few new tokens; shapes as in a prompt."""
        attended = self.take_and_read(reading, layer, q, k, v)
        self.look_back(reading, layer, q, attended)
        return attended.out

    def look_back(self, reading: Reading, layer: int, q: torch.Tensor, attended: Attended) -> None:
        """What follows once a few new tokens have read: queries are kept, and the step evicts where it says so."""
        for group in self.layers[layer]:
            if reading.step.evicts or group.looks_back:
                lse = lanes_of(group, attended.lse.unflatten(0, (self.rows, -1))) if group.keeps_lse else None
                self._after_read(reading, group, lanes_of(group, q), lse)

    def take_and_read(
        self, reading: Reading, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> Attended:
        """A few new tokens stored, and read by one kernel call where all groups read all that they hold; shapes as in
        a prompt."""
        return self.read_layer(reading, layer, q, self.take(reading, layer, q, k, v))

    def take(self, reading: Reading, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Taken:
        """A few new tokens stored: each group with its own q, k and v, by lanes."""
        own = []
        for group in self.layers[layer]:
            place = group.place  # `lanes_of` written out: every token passes here
            parts = q[:, place].flatten(0, 1), k[:, place].flatten(0, 1), v[:, place].flatten(0, 1)
            self._take_in(reading, group, *parts)
            own.append((group, *parts))
        return own

    def read_layer(self, reading: Reading, layer: int, q: torch.Tensor, own: Taken) -> Attended:
        """What a layer stores, the new tokens included, as queries q [b, h, g, t, d] read it; own: by group, its lanes
        of them and of the new keys and values."""
        reader = self.readers[layer] if reading.step.phase == "decode" else None
        attended = None if reader is None else reader.read(reading, q.flatten(0, 1))
        return read_groups(reading, own) if attended is None else attended

    def grouped(
        self, step: Step, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: int | None = None
    ) -> torch.Tensor:
        """The queries [b, h, g, t, d] of a layer whose q [b, H, t, d], k [b, h, t, d] and v [b, h, t, e] are as they
        must be. asked: of how many of the step's tokens there are queries, where not of all."""
        own, b, t = self.plan.geometry.layers[layer], self.rows, step.tokens
        asked = t if asked is None else asked
        query_heads, h, d, e = own.query_heads, own.kv_heads, own.key_width, own.value_width
        if (q.shape, k.shape, v.shape) != ((b, query_heads, asked, d), (b, h, t, d), (b, h, t, e)) or asked > t:
            want(q, "b H t d", b=b, H=query_heads, t=min(asked, t), d=d)
            want(k, "b h t d", b=b, h=h, t=t, d=d)
            want(v, "b h t e", b=b, h=h, t=t, e=e)
        return q.unflatten(1, (h, query_heads // h))

    def turn(self, layer: int, scoring: Scoring) -> Reading:
        """What reads of `layer` share in this step; prefetches the pages of the next layer."""
        if self.opened is None or layer not in self._open:
            raise SessionError(f"layer {layer} was run without an announced step, or twice in one; call begin() first")
        if self.tier is not None:
            for store in self.stores((layer + 1) % len(self.layers)):
                store.prefetch()
        return self.reading(self.opened, layer, scoring)

    def reading(self, step: Step, layer: int, scoring: Scoring) -> Reading:
        """What reads of `layer` in a step share."""
        own, known = self.plan.geometry.layers[layer], (self.ledger, self.plan, self.memories, self.marks)
        sinks = scoring.sinks  # they join what was read, which is read of keys alone
        of_keys = scoring if not own.sinks and sinks is None else without_sinks(layer, own, scoring)
        return Reading(step, of_keys, own.window, self.seed, self.ropes[layer], *known, sinks, own.chunked)

    @torch.no_grad()
    def _take_in(self, reading: Reading, group: Group, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Append new tokens, q [lanes, g, t, d], k [lanes, t, d], v [lanes, t, e]; a selection learns of a prompt's."""
        step = reading.step
        positions = step.positions.to(k.device)
        counts = [live for live in step.live for _ in group.heads] if step.padded else None
        if group.store.unfitted:
            meet_new(reading, group, q)
        group.store.append(k, v, positions.repeat_interleave(len(group.heads), 0), counts)
        for row, live in enumerate(step.live):
            group.since[row] += live
            group.passed[row] += live
        if group.learns:
            learn(reading, group, q)

    @torch.no_grad()
    def _after_read(self, reading: Reading, group: Group, q: torch.Tensor, lse: torch.Tensor | None) -> None:
        """Keep queries [lanes, g, t, d] for later looks, with their lse [lanes, g, t]; evict when the step says so."""
        step = reading.step
        if step.phase == "prefill":
            self.ledger.peak(self.nbytes())
        if not (step.evicts or group.last_queries or group.counts_mass):
            return
        group.remember(step, q, lse)
        if step.evicts:
            self._evict(reading, group, group.queries_of(step, q))

    @torch.no_grad()
    def _evict(self, reading: Reading, group: Group, queries: list[torch.Tensor]) -> None:
        """Let a group evict, by queries [heads, g, w, d] of each row, once no layer is to read it any more."""
        if self._open & self.plan.geometry.readers(group.layer):
            self._later.append((reading, group, queries))
            return
        if group.counts_mass:
            count_mass(reading, group)
        if self.rehearsals.postpones(group, reading.step):
            self.rehearsals.wait(reading, group, queries)
        elif not self.gathers or group.evicts_of(reading.step, reading.window):
            bring_down(reading, group, queries, self.spans)

    def done(self, step: Step, layer: int) -> None:
        """Note that a layer has had its turn; the last one closes the step."""
        self._open.discard(layer)
        if self._later:
            later, self._later = self._later, []
            for one in later:
                self._evict(*one)
        if self._open:
            return
        self.opened = None
        self.clock["steps"] += 1
        held = self.cache_bytes()
        self.ledger.peak(held + self.undo_bytes)
        self.ledger.close_step(step.phase, held, self.dense_bytes())
        self.ledger.carried(step.phase, step.tokens, self.moved_bytes())

    def lengths(self, layer: int) -> torch.Tensor:
        """Tokens stored, int64 [b, h]."""
        out = torch.zeros(self.rows, self.plan.geometry.layers[layer].kv_heads, dtype=torch.int64)
        for group in self.layers[layer]:
            out[:, group.heads] = torch.tensor(group.store.lengths).view(self.rows, -1)
        return out

    def stores(self, layer: int) -> list[KVStore]:
        """The stores of a layer, one per distinct recipe."""
        return [group.store for group in self.layers[layer]]

    def nbytes(self) -> int:
        """Bytes of the real storages: the cache, and what is held to take back the newest step."""
        return self.cache_bytes() + self.undo_bytes

    @property
    def undo_bytes(self) -> int:
        """Bytes held to take back the newest step."""
        return self.states.undo_bytes + (self._undo.nbytes if self._undo is not None else 0)

    def cache_bytes(self) -> int:
        """Bytes of keys, values, positions, what methods remember, and states."""
        return self.governed_bytes() + self.states.nbytes

    def governed_bytes(self) -> int:
        """Those of `cache_bytes` that the plan governs: all but states."""
        return sum([group.nbytes for group in self.groups]) + self.memories.nbytes

    def moved_bytes(self) -> int:
        """Bytes carried so far between memory and the tier that keys and values lie in; 0 without one."""
        return 0 if self.tier is None else sum(group.store.moved for group in self.groups)

    def dense_bytes(self) -> int:
        """Bytes that an uncompressed cache of the tokens seen would take; states as they are."""
        shape, states = self.plan.geometry, self.rows * self.plan.geometry.state_bytes(self.dtype)
        return sum(shape.dense_bytes(seen, self.dtype) for seen in self.seen) - states + self.states.nbytes

    def predicted_bytes(self) -> int:
        """What the plan says the cache takes now: counts at the last eviction plus tokens since, in whole pages, and
        what methods noted and layers pass on."""
        return sum(group.predicted_bytes() for group in self.groups) + self.memories.nbytes + self.states.nbytes

    def truncate(self, seen: int | Sequence[int]) -> None:
        """Go back to `seen` tokens (one number, or one per row), as if later ones had never come.

        Tokens that an eviction has dropped meanwhile do not return, nor does the mean that some methods keep of them
        when it holds later ones: take a snapshot before steps that may evict.
        """
        go_back(self, [seen] * self.rows if isinstance(seen, int) else list(seen))

    def commit(self) -> None:
        """The forward pass that the newest step was part of has succeeded: `abort` has nothing to take back any more,
        and what was held for it is let go. A step that is still open stays as it is."""
        if self.opened is None:
            self._undo = None
            self.states.commit()

    def between_steps(self, what: str) -> None:
        """Refuse to do `what` in the middle of a step; else the newest one is committed."""
        if self.opened is not None:
            raise SessionError(f"cannot {what} in the middle of a step; call abort() first")
        refuse_drafted(self, what)
        self.commit()

    def abort(self) -> None:
        """Take back the newest step, open or closed, unless it was committed: everything is as it was before `begin`,
        evictions, notes, memories, clocks and the ledger included. Interrupted itself, it is called again.

        SessionError where a step is open that was begun without `undo`.
        """
        if self._undo is not None:
            self._undo.back()
            self._undo = None
        elif self.opened is not None:
            raise SessionError(
                f"step {self.opened.number} was begun as one that is not taken back; make a new session, or begin "
                "steps with undo=True"
            )

    def fork(self) -> Session:
        """An independent copy that continues from here."""
        self.between_steps("fork")
        other = copy.copy(self)
        other.seen, other.clock, other.ledger = list(self.seen), dict(self.clock), copy.deepcopy(self.ledger)
        other.layers, other.spans = fork_groups(self.layers, self.spans)
        other.readers = [layer_reader(groups) for groups in other.layers]
        other.memories, other.rehearsals = self.memories.fork(), self.rehearsals.fork()
        other.states = self.states.fork()
        return other

    def snapshot(self) -> Session:
        """A copy to go back to with `restore`."""
        return self.fork()

    def restore(self, snapshot: Session) -> None:
        """Become the session that `snapshot()` returned, exactly; the snapshot stays usable.

        SessionError for a session that was not made as this one was.
        """
        if snapshot.plan is not self.plan or snapshot.dtype != self.dtype or snapshot.device != self.device:
            raise SessionError(
                f"this session, of plan {self.plan.digest} in {self.dtype} on {self.device}, cannot become one of plan "
                f"{snapshot.plan.digest} in {snapshot.dtype} on {snapshot.device}; restore what its own snapshot() gave"
            )
        other = snapshot.fork()
        self.rows, self.seed, self.tier = other.rows, other.seed, other.tier
        self.ropes, self.marks = other.ropes, other.marks
        self.seen, self.passed, self.clock = other.seen, other.passed, other.clock
        self.layers, self.spans, self.readers = other.layers, other.spans, other.readers
        self.memories, self.rehearsals, self.ledger = other.memories, other.rehearsals, other.ledger
        self.states = other.states
        self.opened, self._open, self._undo, self.drafted = None, set(), None, None

    absorb = absorb
    follow = follow
    hand_back = hand_back
    positions = positions
    remarks = remarks
    report = report
