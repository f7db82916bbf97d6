"""Compiled layers that wait for each other: what a decoding step's layers compute is computed by one native call.

A layer whose output nobody but the next compiled layer reads answers with room for it, and waits. The last one, or the
last before something that listens, has all of them computed: every layer's output is then what it would have been.
Until then the room holds NaN, so that whoever reads it after all is not misled.
"""

from __future__ import annotations

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
    """The calls of all layers of a chain over one session, and what they were made for: the steps and the shape and
    type of hidden states, the steps' own calls, how each layer asks; None for one that is computed by itself."""

    made_for: tuple[Any, ...]
    calls: tuple[object, ...]
    asked: tuple[Asked | None, ...]
    chained: Chained
    chain: Chain

    def suits(self, step: Step, asked: Asked) -> bool:
        """Whether a layer is still the one that the calls were made for."""
        assert step.link is not None, "it is one of the chain"
        place = step.link.place
        return self.calls[place] is step.calls and self.asked[place] == asked


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
    """Lets the compiled layers of a model wait, in the decoding steps over one cache."""

    def __init__(self, door: SessionDoor) -> None:
        self._door = door
        self._prepared: _Prepared | None = None
        self._waiting: _Waiting | None = None
        self._alone: tuple[Any, ...] = ()  # what no calls could be made for
        self._apart = False  # whether this step's layers are computed one by one, as one listens or there is no room

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
        door, session, tokens = self._door, self._door.session, x.shape[1]
        branches = door.tree is not None and door.tree.branches
        otherwise = branches or door.passage is not None or door.queries is not None
        if session is None or otherwise or self._apart:
            return None
        refuse_left_over()
        begins = step.manner.layer == door.first
        decodes = door.decodes(session, tokens) if begins else session.opened is not None and session.opened.decodes
        if not decodes or session.rows != x.shape[0] or (prepared := self._ready(step, link, session, x)) is None:
            return None
        if not prepared.suits(step, asked):
            return None
        self._apart = not prepared.chained.fits(link.place, tokens)
        if self._apart:
            return None
        own = prepared.chained.calls[link.place]
        assert own is not None, "it suits"
        q, k, _ = own.incoming.new
        door.at(step.manner.layer, q, k, None, asked)
        room = x.new_full((len(link.steps) - link.place, *x.shape), torch.nan).unbind(0)
        return _Waiting(link.place, x, prepared, room, _version(room[0]))

    def _ready(self, step: Step, link: Link, session: Session, x: Tensor) -> _Prepared | None:
        """The calls of all layers, made anew where what they were made for has changed; None where they cannot be."""
        prepared, made_for = self._prepared, (link.steps, x.shape, x.dtype, torch.get_num_threads())
        if (
            prepared is not None
            and prepared.made_for == made_for
            and prepared.calls[link.place] is step.calls
            and prepared.chained.still(session)
        ):
            return prepared
        asked_for = (*made_for, session, id(session.layers))
        self._apart = not all(one.ready() and one.dtype is x.dtype for one in link.steps)
        if self._apart or asked_for == self._alone:
            return None
        self._prepared = _prepare(made_for, link.steps, session, x)
        self._alone = asked_for if self._prepared is None else ()
        return self._prepared

    def finish(self) -> None:
        """Compute what waits."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        own, count = waiting.prepared.chained, len(waiting.angles)
        held = own.tell(waiting.first, count)
        waiting.prepared.chain.run(waiting.first, waiting.x, waiting.room[:count], waiting.angles)
        del held
        own.end(waiting.first, count)

    def forget(self) -> None:
        """A forward begins, or what waits is not wanted any more."""
        self._waiting, self._apart = None, False

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


def _prepare(made_for: tuple[Any, ...], steps: Sequence[Step], session: Session, x: Tensor) -> _Prepared | None:
    """The calls of all layers, which are ready, for hidden states such as x [b, t, hidden]."""
    every, asked = [], []
    for step in steps:
        assert step.calls is not None, "all are ready"
        own = session.plan.geometry.layers[step.manner.layer]
        scoring = Scoring(step.manner.scale, step.manner.softcap)
        every.append(Incoming(step.manner.layer, step.calls[0].room(x.shape[0], x.shape[1], x.dtype), scoring))
        asked.append(Asked(scoring, own.window, own.chunked))
    if (found := chained(session, every)) is None:
        return None
    layers = [_one_layer(step, one) for step, one in zip(steps, found.calls, strict=True)]
    told = [None if layer is None else one for layer, one in zip(layers, asked, strict=True)]
    return _Prepared(made_for, tuple(step.calls for step in steps), tuple(told), found, Chain(layers))


def _one_layer(step: Step, one: LayerCalls | None) -> OneLayer | None:
    """A layer's calls, all of which are native; None where they are not, or there are none."""
    assert step.calls is not None, "all are ready"
    if one is None or not isinstance(one.ready, Ready):
        return None
    writes = tuple(writer for _, writer in one.entrances if isinstance(writer, Append))
    whole = len(writes) == len(one.entrances)
    return OneLayer(step.calls[0], one.incoming.new, writes, one.ready, step.calls[1]) if whole else None
