"""Which sequences a session holds: rows are dropped, repeated and reordered, as beam search and batches ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headwise.engine.session import Session
from headwise.errors import SessionError


def select_rows(session: Session, rows: Sequence[int]) -> None:
    """Let row i go on as a copy of what row rows[i] was; the number of rows may change.

    Refused between the layers of a step, for rows that there are not, and where keys and values lie in a tier.
    """
    wrong = [row for row in rows if not 0 <= row < session.rows]
    if not rows or wrong:
        raise SessionError(f"cannot select rows {list(rows)}; rows are 0 to {session.rows - 1}, and one at least stays")
    session.between_steps("select rows")
    if session.tier is not None:
        raise SessionError("rows cannot be selected where keys and values lie in a tier; leave resident= out")
    for group in session.groups:
        group.select(rows)
    session.memories.select(rows)
    session.states.select(rows)
    session.rehearsals.select(rows)
    session.ledger.select(rows)
    session.marks = tuple(
        sorted(
            (replace(mark, row=new) for new, old in enumerate(rows) for mark in session.marks if mark.row == old),
            key=lambda mark: mark.start,
        )
    )
    session.seen = [session.seen[row] for row in rows]
    session.rows = len(rows)
