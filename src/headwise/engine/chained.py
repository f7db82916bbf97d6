"""Decoding steps whose layers are stored and read by calls that were made ready before: what of a step is the same in
every one, while nothing that is stored moves, is found once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from headwise.attention.attend import prepare_pages
from headwise.cache.paged import PagedStore
from headwise.engine.group import Group
from headwise.engine.session import Session
from headwise.forms import Causal, Full, Scoring
from headwise.kernels import ops
from headwise.kernels.dispatch import noting
from headwise.kernels.request import Part as Pages
from headwise.kernels.request import Prepared, Ready, Writer


@dataclass(frozen=True)
class Incoming:
    """How a layer's new tokens come: its number, the place of queries [b, H, t, d], keys [b, h, t, d] and values [b, h,
    t, e], and how it scores."""

    layer: int
    new: tuple[Tensor, Tensor, Tensor]
    scoring: Scoring


@dataclass(frozen=True)
class _Part:
    """The pool of a group, what writes to it, and which of a layer's lanes, those of a row together, its own are."""

    group: Group
    pool: PagedStore
    writer: Writer
    lanes: tuple[int, ...]


class LayerCalls:
    """What stores and reads one layer's new tokens: calls that are told of every step, and made by others."""

    def __init__(self, incoming: Incoming, parts: Sequence[_Part], kernel: Prepared, left: int) -> None:
        self.incoming, self.parts, self.kernel = incoming, parts, kernel
        tokens = incoming.new[0].shape[2]
        self.ready: Ready = kernel.over(self.queries.flatten(0, 1), tokens > 1 or left >= 0, [left] * len(parts))
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
        """By part and lane, where the first of so many new tokens goes; None where there is no room for them."""
        found = [part.pool.pages.next_slots(tokens) for part in self.parts]
        return None if None in found else [one for one in found if one is not None]


def layer_calls(session: Session, incoming: Incoming) -> LayerCalls | None:
    """The calls for a layer; None where it does more than to read all that it stores, in pools of one level."""
    own = session.plan.geometry.layers[incoming.layer]
    groups, scoring = session.layers[incoming.layer], incoming.scoring
    if session.readers[incoming.layer] is None or own.sinks or scoring.sinks is not None or own.chunked:
        return None
    q, k, v = incoming.new
    heads, rows = k.shape[1], range(k.shape[0])
    parts = []
    for group in groups:
        pools = group.store.pools()
        if len(pools) != 1 or group.store.unfitted or group.learns:
            return None
        if (writer := pools[0].find_writer()) is None:
            return None
        lanes = tuple(row * heads + head for row in rows for head in group.heads)
        writer.of(k.flatten(0, 1), v.flatten(0, 1), lanes)
        parts.append(_Part(group, pools[0], writer, lanes))
    pages = [Pages(part.pool.paged(0, part.pool.shape.lanes), part.lanes) for part in parts]
    like = q.unflatten(1, (heads, -1)).flatten(0, 1)
    kernel = prepare_pages(like, pages, Full() if q.shape[2] == 1 else Causal(), scoring)
    return None if kernel is None else LayerCalls(incoming, parts, kernel, -1 if own.window is None else own.window - 1)


class Chained:
    """A session's decoding steps of the tokens that lie at the places asked for, as calls."""

    def __init__(self, session: Session, calls: Sequence[LayerCalls]) -> None:
        self.session, self.calls, self._layers = session, tuple(calls), session.layers
        self._slots: list[list[list[int]]] = []

    def still(self, session: Session) -> bool:
        """Whether these are the calls of a session as it is now."""
        same = session is self.session and session.layers is self._layers
        return same and all(one.still() for one in self.calls)

    def fits(self, first: int, tokens: int) -> bool:
        """Whether so many new tokens have room in every layer from call `first` on; where they go is then noted, for
        the step that is about to be made."""
        self._slots = [[] for _ in self.calls]
        for number in range(first, len(self.calls)):
            if (slots := self.calls[number].slots(tokens)) is None:
                return False
            self._slots[number] = slots
        return True

    def tell(self, first: int, count: int) -> list[Tensor]:
        """Let `count` calls from `first` on know what this step adds; what is returned is to be held until they have
        been made."""
        session, held = self.session, []
        assert session.opened is not None, "begun by the first layer"
        tokens = session.opened.tokens
        by_heads: dict[int, Tensor] = {}
        for one, slots in zip(self.calls[first : first + count], self._slots[first : first + count], strict=True):
            for number, (part, own) in enumerate(zip(one.parts, slots, strict=True)):
                heads = len(part.group.heads)
                if heads not in by_heads:
                    by_heads[heads] = session.opened.positions.repeat_interleave(heads, 0)
                    held.append(by_heads[heads])
                part.writer.at(by_heads[heads], own)
                one.kernel.lengthen(number, [length + tokens for length in part.pool.pages.lengths])
        return held

    def end(self, first: int, count: int) -> None:
        """The calls were made: the tokens are stored, and what follows in each of these layers is done."""
        session, step = self.session, self.session.opened
        assert step is not None, "begun by the first layer"
        for one in self.calls[first : first + count]:
            for part in one.parts:
                pages = part.pool.pages
                pages.lengths = [length + step.tokens for length in pages.lengths]
                for row, live in enumerate(step.live):
                    part.group.since[row] += live
                    part.group.passed[row] += live
            session.ledger.operations[step.phase, ops.attend_pages.name, one.kernel.backend] += len(one.parts)
        with noting(partial(session.ledger.note, step.phase)):
            for one in self.calls[first : first + count]:
                layer = one.incoming.layer
                if step.evicts or any(part.group.looks_back for part in one.parts):
                    session.look_back(
                        session.reading(step, layer, one.incoming.scoring), layer, one.queries, one.ready.whole()
                    )
                session.done(step, layer)


def chained(session: Session, every: Sequence[Incoming]) -> Chained | None:
    """The steps of a session whose layers, all of them, are asked so; None where one of them needs another way."""
    if session.tier is not None or any(session.plan.geometry.reading):
        return None
    calls = []
    for incoming in every:
        if (found := layer_calls(session, incoming)) is None:
            return None
        calls.append(found)
    return Chained(session, calls)
