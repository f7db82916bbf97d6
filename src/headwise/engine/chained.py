"""Decoding steps whose layers are stored and read by calls that were made ready before: what of a step is the same in
every one, while nothing that is stored moves, is found once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from headwise.attention.attend import prepare_pages
from headwise.cache.paged import PagedStore
from headwise.engine.drafted import note_looked
from headwise.engine.group import Group, Step
from headwise.engine.lately import Lately
from headwise.engine.session import Session
from headwise.forms import Causal, Full, Scoring
from headwise.kernels import ops
from headwise.kernels.dispatch import noting
from headwise.kernels.request import Part as Pages
from headwise.kernels.request import Prepared, Ready, Writer


@dataclass(frozen=True)
class Incoming:
    """How a layer's new tokens come: its number, the place of queries [b, H, t, d], keys [b, h, t, d] and values [b, h,
    t, e], how it scores, and where what they read goes, [b, H, t, e] without gaps."""

    layer: int
    new: tuple[Tensor, Tensor, Tensor]
    scoring: Scoring
    attended: Tensor

    def of(self, rows: slice) -> Incoming:
        """The same of some rows of the batch."""
        q, k, v = self.new
        return Incoming(self.layer, (q[rows], k[rows], v[rows]), self.scoring, self.attended[rows])


@dataclass(frozen=True)
class _Part:
    """One level of a group: its pool, and which of a layer's lanes, those of a row together, its own are. writer: to
    the finest level, which new tokens go to."""

    group: Group
    pool: PagedStore
    lanes: tuple[int, ...]
    level: int
    writer: Writer | None


class LayerCalls:
    """What stores and reads one layer's new tokens: calls that are told of every step, and made by others. window: of
    tokens, or None; lately: where that is of tokens at several levels."""

    def __init__(
        self, incoming: Incoming, parts: Sequence[_Part], kernel: Prepared, window: int | None, lately: Lately | None
    ) -> None:
        self.incoming, self.parts, self.kernel, self.window, self.lately = incoming, parts, kernel, window, lately
        self.entrances = [(part, part.writer) for part in parts if part.writer is not None]
        tokens, left = incoming.new[0].shape[2], -1 if window is None else window - 1
        queries = self.queries.flatten(0, 1)
        out = incoming.attended.view(*queries.shape[:3], -1)
        self.ready: Ready = kernel.over(queries, tokens > 1 or left >= 0, [left] * len(parts), out)
        self.versions = [part.pool.pages.version for part in parts]

    @cached_property
    def queries(self) -> Tensor:
        """[b, h, g, t, d]."""
        q, k, _ = self.incoming.new
        return q.unflatten(1, (k.shape[1], -1))

    def still(self) -> bool:
        """Whether the pools lie where they did."""
        return [part.pool.pages.version for part in self.parts] == self.versions

    def slots(self, tokens: int) -> list[list[int]] | None:
        """By entrance and lane, where the first of so many new tokens goes; None where there is no room for them."""
        found = [part.pool.pages.next_slots(tokens) for part, _ in self.entrances]
        return None if None in found else [one for one in found if one is not None]

    def make_room(self, tokens: int) -> None:
        """Let the pools that new tokens go to have room for so many; those that had none then lie elsewhere."""
        for part, _ in self.entrances:
            part.pool.pages.make_room(tokens)

    def tell(self, step: Step, slots: Sequence[list[int]], positions: Callable[[int], Tensor]) -> None:
        """Let the calls know what a step adds, and where; from now on it counts as stored. positions: int64 [lanes, t]
        of the lanes of so many heads."""
        for (part, writer), own in zip(self.entrances, slots, strict=True):
            writer.at(positions(len(part.group.heads)), own)
            part.pool.pages.lengths = [length + step.tokens for length in part.pool.pages.lengths]
            for row, live in enumerate(step.live):
                part.group.since[row] += live
                part.group.passed[row] += live
        counts = None
        if self.lately is not None and self.window is not None:
            counts = self.lately.counts(self.window, step.seen)
        for number, part in enumerate(self.parts):
            shown = None if counts is None else counts[number]
            self.kernel.lengthen(number, [0] * len(part.lanes) if shown == 0 else part.pool.lengths)
            if shown is not None:
                self.kernel.reach(number, shown - 1)


def layer_calls(session: Session, incoming: Incoming) -> LayerCalls | None:
    """The calls for a layer; None where it does more than to read what it stores, in pools in memory."""
    own = session.plan.geometry.layers[incoming.layer]
    groups, scoring = session.layers[incoming.layer], incoming.scoring
    if session.readers[incoming.layer] is None or own.sinks or scoring.sinks is not None or own.chunked:
        return None
    q, k, v = incoming.new
    heads, rows = k.shape[1], range(k.shape[0])
    parts: list[_Part] = []
    for group in groups:
        pools = group.store.pools()
        if group.store.unfitted or group.learns or (writer := pools[0].find_writer()) is None:
            return None
        lanes = tuple(row * heads + head for row in rows for head in group.heads)
        writer.of(k.flatten(0, 1), v.flatten(0, 1), lanes)
        parts += [_Part(group, pool, lanes, level, None if level else writer) for level, pool in enumerate(pools)]
    if q.shape[2] > 1 and min(min(part.pool.lengths) for part in parts if not part.level) < q.shape[2]:
        return None  # calls are prepared for what is stored by now, which is less than what comes
    lately = None
    if own.window is not None and any(part.level for part in parts):
        lately = Lately([part.pool for part in parts], session.seen)
        if q.shape[2] > 1 or lately.counts(own.window, session.seen) is None:
            return None
    pages = [Pages(part.pool.paged(0, part.pool.shape.lanes), part.lanes, part.level) for part in parts]
    like = q.unflatten(1, (heads, -1)).flatten(0, 1)
    kernel = prepare_pages(like, pages, Full() if q.shape[2] == 1 else Causal(), scoring)
    return None if kernel is None else LayerCalls(incoming, parts, kernel, own.window, lately)


class Chained:
    """A session's decoding steps of tokens that come at the same places each time, as calls by layer; None for a layer
    that needs another way."""

    def __init__(self, session: Session, calls: Sequence[LayerCalls | None]) -> None:
        self.session, self.calls, self._layers = session, tuple(calls), session.layers
        self._slots: list[list[list[int]]] = []
        self._ended = False  # whether a step evicted, so that tokens may lie elsewhere within their pools

    def still(self, session: Session) -> bool:
        """Whether these are the calls of a session as it is now."""
        same = session is self.session and session.layers is self._layers and not self._ended
        return same and all(one is None or one.still() for one in self.calls)

    def fits(self, first: int, tokens: int) -> bool:
        """Whether so many new tokens have room in every layer from call `first` on; where they go is then noted, for
        the step that is about to be made."""
        self._slots = [[] for _ in self.calls]
        for number, one in enumerate(self.calls[first:], first):
            if one is not None:
                if (slots := one.slots(tokens)) is None:
                    return False
                self._slots[number] = slots
        return True

    def make_room(self, first: int, tokens: int) -> None:
        """Let every layer from call `first` on have room for so many new tokens."""
        for one in self.calls[first:]:
            if one is not None:
                one.make_room(tokens)

    def tell(self, first: int, count: int) -> list[Tensor]:
        """Let `count` calls from `first` on know what this step adds; what is returned is to be held until they have
        been made."""
        step = self.session.opened
        assert step is not None, "begun by the first layer"
        by_heads: dict[int, Tensor] = {}

        def positions(heads: int) -> Tensor:
            if heads not in by_heads:
                by_heads[heads] = step.positions.repeat_interleave(heads, 0)
            return by_heads[heads]

        for one, slots in zip(self.calls[first : first + count], self._slots[first:], strict=False):
            assert one is not None, "it waits"
            one.tell(step, slots, positions)
        return list(by_heads.values())

    def end(self, first: int, count: int) -> None:
        """The calls were made: what follows in each of these layers is done."""
        session, step = self.session, self.session.opened
        assert step is not None, "begun by the first layer"
        self._ended = self._ended or step.evicts
        with noting(partial(session.ledger.note, step.phase)):
            for one in self.calls[first : first + count]:
                assert one is not None, "it waited"
                layer, read = one.incoming.layer, (step.phase, ops.attend_pages.name, one.kernel.backend)
                session.ledger.operations[read] += len(one.parts)
                if session.drafted is not None:
                    note_looked(session, layer, one.queries, one.ready.whole().lse)
                elif step.evicts or any(part.group.looks_back for part in one.parts):
                    reading = session.reading(step, layer, one.incoming.scoring)
                    session.look_back(reading, layer, one.queries, one.ready.whole())
                session.done(step, layer)


def chained(session: Session, every: Sequence[Incoming]) -> Chained | None:
    """The steps of a session whose layers' new tokens come so; None where every layer needs another way."""
    if session.tier is not None or any(session.plan.geometry.reading):
        return None
    calls = [layer_calls(session, incoming) for incoming in every]
    return Chained(session, calls) if any(calls) else None
