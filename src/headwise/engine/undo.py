"""What takes a session back: the newest step of it, or its last tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise.cache.journal import Checkpoint
from headwise.errors import SessionError

if TYPE_CHECKING:
    from headwise.engine.session import Session


def checkpoint(session: Session) -> Checkpoint:
    """What there is before a step: small things copied, pages left where they are."""
    seen, passed, clock = list(session.seen), session.passed, dict(session.clock)

    def back() -> None:
        session.seen, session.passed, session.clock = seen, passed, clock
        session.opened, session._open, session._later, session.drafted = None, set(), [], None

    parts = [group.checkpoint() for group in session.groups]
    journals = [journal for part in parts for journal in part.journals]
    rollbacks = [rollback for part in parts for rollback in part.rollbacks]
    kept = (session.memories, session.states, session.ledger, session.rehearsals)
    return Checkpoint((*journals,), (*rollbacks, *(one.checkpoint() for one in kept), back))


def go_back(session: Session, limits: list[int]) -> None:
    """Go back to so many tokens of each row, see `Session.truncate`."""
    session.between_steps("truncate")
    for row, (limit, have) in enumerate(zip(limits, session.seen, strict=True)):
        if not 0 <= limit <= have:
            raise SessionError(f"cannot truncate row {row} to {limit} tokens; it has seen {have}")
    removed = [have - limit for have, limit in zip(session.seen, limits, strict=True)]
    passed = max(session.passed - max(removed), *limits)  # rows cut unevenly: the shorter ones count as padded
    session.states.refuse_back(passed, session.passed, removed)
    for group in session.groups:
        group.truncate(limits)
    session.memories.truncate(limits)
    session.rehearsals.truncate(removed)
    session.states.truncate(passed, session.passed)
    session.seen, session.passed = limits, passed
