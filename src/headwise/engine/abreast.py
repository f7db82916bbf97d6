"""Several sessions that step together: what their new tokens read is read for all of them by one call of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from headwise.engine.layers import read_groups
from headwise.engine.read import Reading
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Attended, Scoring
from headwise.kernels.dispatch import noting
from headwise.kernels.request import Ready


@dataclass
class _Turn:
    """A session at its turn in a layer whose new tokens are stored: queries [1, h, g, t, d], and the call by which they
    read; without one they have read already."""

    session: Session
    reading: Reading
    q: torch.Tensor
    ready: Ready | None
    attended: Attended | None

    def end(self, layer: int) -> torch.Tensor:
        """What the queries read, [1, H, t, e], once all that follows in this layer is done."""
        session, reading = self.session, self.reading
        assert self.attended is not None, "it was read"
        with noting(partial(session.ledger.note, reading.step.phase)):
            session.look_back(reading, layer, self.q, self.attended)
        session.done(reading.step, layer)
        return self.attended.out.unflatten(0, (1, -1)).flatten(1, 2)


def step_abreast(
    sessions: Sequence[Session], layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Attention of one layer in the announced steps of several sessions of one row each: row i of q [b, H, t, d], k [b,
    h, t, d] and v [b, h, t, e] is session i's -> [sessions, H, t, e], each what `Session.step` gives, bit for bit.

    Sessions all of whose groups read all that they hold are read by one call of a kernel, however long they are and in
    whatever codecs they lie; others, such as those that select, read by themselves. SessionError for steps that are no
    decoding.
    """
    turns = [
        _begun(session, layer, q[row : row + 1], k[row : row + 1], v[row : row + 1], scoring)
        for row, session in enumerate(sessions)
    ]
    waiting = [turn for turn in turns if turn.ready is not None]
    for turn, attended in zip(waiting, _run([turn.ready for turn in waiting if turn.ready]), strict=True):
        reader = turn.session.readers[layer]
        assert reader is not None, "it made the call"
        turn.attended = reader.whole(turn.reading, attended)
    return torch.cat([turn.end(layer) for turn in turns])


def _begun(session: Session, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring) -> _Turn:
    """A session whose new tokens in a layer are stored, and read where that has to be done by itself."""
    reading = session.turn(layer, scoring)
    if reading.step.phase != "decode" or session.drafted is not None:
        raise SessionError("sessions go on together by tokens that are decoded; read prompts and drafts one by one")
    queries = session.grouped(reading.step, layer, q, k, v)
    with noting(partial(session.ledger.note, reading.step.phase)):
        own = session.take(reading, layer, queries, k, v)
        reader = session.readers[layer]
        ready = None if reader is None else reader.ready(reading, queries.flatten(0, 1))
        attended = read_groups(reading, own) if ready is None else None
    return _Turn(session, reading, queries, ready, attended)


def _run(calls: Sequence[Ready]) -> list[Attended]:
    """All calls, which are of one backend, as every reader asks them in the same order."""
    return calls[0].run(*calls[1:]) if calls else []
