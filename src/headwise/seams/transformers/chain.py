"""Compiled layers that wait for each other: what a decoding step's layers compute is computed by one native call.

A layer whose output nobody but the next compiled layer reads answers with room for it, and waits. The last one, or the
last before something that listens, has all of them computed: every layer's output is then what it would have been.
Until then the room holds NaN, so that whoever reads it after all is not misled.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headwise.engine.chained import Chained, Incoming, LayerCalls, chained
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Scoring
from headwise.kernels.native.append import Append
from headwise.kernels.native.chain import Chain, OneLayer
from headwise.kernels.native.decode import Ready
from headwise.seams.transformers.door import refuse_left_over, told
from headwise.seams.transformers.probe import Asked

if TYPE_CHECKING:
    from headwise.seams.transformers.compiled import Link, Step
    from headwise.seams.transformers.session_door import SessionDoor


@dataclass(frozen=True)
class _Prepared:
    """The calls of all layers of a chain over some sessions, and what they were made for: the steps and the shape and
    type of hidden states, the steps' own calls, where each layer's new tokens come, how it asks; None for one that is
    computed by itself."""

    made_for: tuple[Any, ...]
    calls: tuple[object, ...]
    places: tuple[Incoming, ...]
    asked: tuple[Asked | None, ...]
    chained: tuple[Chained, ...]
    chain: Chain

    def suits(self, step: Step, asked: Asked) -> bool:
        """Whether a layer is still the one that the calls were made for."""
        assert step.link is not None, "it is one of the chain"
        place = step.link.place
        return self.calls[place] is step.calls and self.asked[place] == asked

    def still(self, sessions: Sequence[Session]) -> list[Chained | None]:
        """Of every session its calls, where they are those of the session as it is now."""
        return [own if own.still(one) else None for own, one in zip(self.chained, sessions, strict=True)]

    def fits(self, first: int, tokens: int) -> bool:
        """Whether every session has room for so many new tokens in all layers from place `first` on."""
        return all([own.fits(first, tokens) for own in self.chained])

    def make_room(self, first: int, tokens: int) -> bool:
        """Let those have it that have none; whether there were any, whose calls are then to be made anew."""
        full = [own for own in self.chained if not own.fits(first, tokens)]
        for own in full:
            own.make_room(first, tokens)
        return bool(full)


@dataclass
class _Waiting:
    """The layers of a step that wait: from place `first` of the chain on, over hidden states x [b, t, hidden], each
    with room for what it gives and its angles. version: of the room, which nobody else is to write to."""

    first: int
    x: Tensor
    prepared: _Prepared
    room: tuple[Tensor, ...]
    version: int
    angles: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Waiter:
    """Lets the compiled layers of a model wait, in the decoding steps over one cache, or over several with a row for
    each. It keeps no cache alive, and nothing that one has held when that is gone or `drop` is called."""

    def __init__(self, doors: Sequence[SessionDoor], a_row_each: bool = False) -> None:
        me = weakref.ref(self)

        def gone(_: object) -> None:
            if (waiter := me()) is not None:
                waiter.drop()

        self._doors, self._a_row_each = [weakref.ref(one, gone) for one in doors], a_row_each
        self._prepared: _Prepared | None = None
        self._waiting: _Waiting | None = None
        self._alone: tuple[Any, ...] = ()  # what no calls could be made for
        self._apart = False  # whether this step's layers are computed one by one, as one listens or there is no room

    def is_of(self, doors: Sequence[SessionDoor]) -> bool:
        """Whether it is that of these caches, in this order."""
        return len(doors) == len(self._doors) and all(one() is two for one, two in zip(self._doors, doors, strict=True))

    def take(self, step: Step, x: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
        """Room for what a layer that is ready gives for x [b, t, hidden], which is there once nothing waits any more;
        None for a layer that has to be computed by itself, and now."""
        if step.link is None or not x.is_contiguous():
            return None
        padding, asked = told(kwargs.get("attention_mask"), step.manner.scale, step.manner.softcap)
        if padding is not None:
            return None
        waiting = self._waiting
        if waiting is None:
            waiting = self._begin(step, step.link, x, asked)
        elif step.link.place != waiting.first + len(waiting.angles):
            return None  # the layers are called in another order now
        elif not waiting.prepared.suits(step, asked):
            if waiting.prepared.calls[step.link.place] is not step.calls:
                self._prepared = None
            return None
        elif x is not waiting.room[len(waiting.angles) - 1] or _version(x) != waiting.version:
            self.refuse_waiting()
        if waiting is None:
            return None
        out = waiting.room[len(waiting.angles)]
        cos, sin = kwargs["position_embeddings"]
        waiting.angles.append((cos.contiguous(), sin.contiguous()))
        self._waiting = waiting
        if step.link.is_seen():
            self.finish()
        return out

    def _begin(self, step: Step, link: Link, x: Tensor, asked: Asked) -> _Waiting | None:
        """The first layer to wait, over hidden states x; where it is the model's first it announces the step. None
        where it cannot wait."""
        if self._apart or (sessions := self._sessions(step, x)) is None:
            return None
        prepared = self._ready(step, link, sessions, x)
        if prepared is None or not prepared.suits(step, asked):
            return None
        if prepared.make_room(link.place, x.shape[1]):
            prepared = self._ready(step, link, sessions, x)
            self._apart = prepared is None or not prepared.fits(link.place, x.shape[1])
            if prepared is None or self._apart:
                return None
        for door, own in zip(self._held(), prepared.chained, strict=True):
            calls = own.calls[link.place]
            assert calls is not None, "it suits"
            q, k, _ = calls.incoming.new
            door.at(step.manner.layer, q, k, None, asked)
        room = x.new_full((len(link.steps) - link.place, *x.shape), torch.nan).unbind(0)
        return _Waiting(link.place, x, prepared, room, _version(room[0]))

    def _held(self) -> list[SessionDoor]:
        return [door for one in self._doors if (door := one()) is not None]

    def _sessions(self, step: Step, x: Tensor) -> list[Session] | None:
        """The sessions that the rows of x [b, t, hidden] are decoded over; None where they are not, or otherwise."""
        refuse_left_over()
        doors, found = self._held(), []
        for door in doors:
            branches = door.tree is not None and door.tree.branches
            session = door.session
            otherwise = branches or door.singly or door.passage is not None or door.queries is not None
            if session is None or otherwise or session.rows != (1 if self._a_row_each else x.shape[0]):
                return None
            begins = step.manner.layer == door.first
            if not (door.decodes(session, x.shape[1]) if begins else session.opened and session.opened.decodes):
                return None
            found.append(session)
        return found

    def _ready(self, step: Step, link: Link, sessions: list[Session], x: Tensor) -> _Prepared | None:
        """The calls of all layers, made anew where what they were made for has changed, and of a session alone where it
        alone has; None where they cannot be."""
        made_for, prepared = (link.steps, x.shape, x.dtype, torch.get_num_threads()), self._prepared
        if prepared is not None and not (prepared.made_for == made_for and prepared.calls[link.place] is step.calls):
            prepared = None
        if prepared is not None and all(prepared.still(sessions)):
            return prepared
        asked_for = (*made_for, *((id(one), id(one.layers)) for one in sessions))
        self._apart = not all(one.ready() and one.dtype is x.dtype for one in link.steps)
        if self._apart or asked_for == self._alone:
            return None
        if prepared is None or any(one.calls is not own for one, own in zip(link.steps, prepared.calls, strict=True)):
            places, known = tuple(_places(one, sessions[0], x) for one in link.steps), list[Chained | None]()
        else:
            places, known = prepared.places, prepared.still(sessions)
        self._prepared = _prepare(made_for, places, sessions, known, self._a_row_each)
        self._alone = asked_for if self._prepared is None else ()
        return self._prepared

    def finish(self) -> None:
        """Compute what waits."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        every, count = waiting.prepared.chained, len(waiting.angles)
        held = [own.tell(waiting.first, count) for own in every]
        waiting.prepared.chain.run(waiting.first, waiting.x, waiting.room[:count], waiting.angles)
        del held
        for own in every:
            own.end(waiting.first, count)

    def forget(self) -> None:
        """A forward begins, or what waits is not wanted any more."""
        self._waiting, self._apart = None, False

    def drop(self) -> None:
        """A cache is gone or begins anew: of what it held nothing is kept."""
        self.forget()
        self._prepared, self._alone = None, ()

    def refuse_waiting(self) -> None:
        """SessionError where layers wait whose output was read meanwhile: there was nothing yet to read."""
        if self._waiting is not None:
            raise SessionError(
                "the model read what a compiled layer had not computed yet, between its layers or before the last of "
                "them; call headwise.detach(model), and go on without headwise.fast"
            )


def _version(x: Tensor) -> int:
    """How often a tensor was written to; 0 where that is not counted."""
    return 0 if x.is_inference() else x._version


def _prepare(
    made_for: tuple[Any, ...],
    places: tuple[Incoming, ...],
    sessions: list[Session],
    known: Sequence[Chained | None],
    a_row_each: bool,
) -> _Prepared | None:
    """The calls of all layers, which are ready, whose new tokens come to `places`. Rows are those of one session, or
    the first of a session each, with idle ones behind them. known: calls for these places that need not be made anew,
    by session."""
    steps: Sequence[Step] = made_for[0]
    every = []
    for row, session in enumerate(sessions):
        ready = known[row] if known else None
        rows = slice(row, row + 1) if a_row_each else slice(None)
        if (found := ready or chained(session, [one.of(rows) for one in places])) is None:
            return None
        every.append(found)
    layers = [
        _one_layer(step, place, [own.calls[i] for own in every])
        for i, (step, place) in enumerate(zip(steps, places, strict=True))
    ]
    asked = []
    for layer, place in zip(layers, places, strict=True):
        own = sessions[0].plan.geometry.layers[place.layer]
        asked.append(None if layer is None else Asked(place.scoring, own.window, own.chunked))
    calls = tuple(step.calls for step in steps)
    return _Prepared(made_for, calls, places, tuple(asked), tuple(every), Chain(layers))


def _places(step: Step, session: Session, x: Tensor) -> Incoming:
    """Where what a layer makes of hidden states such as x goes, of all rows."""
    assert step.calls is not None, "all are ready"
    new = step.calls[0].room(x.shape[0], x.shape[1], x.dtype)
    width = session.plan.geometry.layers[step.manner.layer].value_width
    attended = x.new_zeros(*new[0].shape[:3], width)  # idle rows have read nothing
    return Incoming(step.manner.layer, new, Scoring(step.manner.scale, step.manner.softcap), attended)


def _one_layer(step: Step, place: Incoming, every: Sequence[LayerCalls | None]) -> OneLayer | None:
    """A layer's calls over all sessions, all of which are native; None where they are not, or there are none."""
    assert step.calls is not None, "all are ready"
    reads = [one.ready for one in every if one is not None]
    writers = [writer for one in every if one is not None for _, writer in one.entrances]
    own_reads = tuple(one for one in reads if isinstance(one, Ready))
    own_writes = tuple(one for one in writers if isinstance(one, Append))
    if len(own_reads) < len(every) or len(own_writes) < len(writers):
        return None
    return OneLayer(step.calls[0], place.new, own_writes, own_reads, place.attended, step.calls[1])
