"""What takes the newest step of a session back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise.cache.journal import Checkpoint

if TYPE_CHECKING:
    from headwise.engine.session import Session


def checkpoint(session: Session) -> Checkpoint:
    """What there is before a step: small things copied, pages left where they are."""
    seen, passed, clock = list(session.seen), session.passed, dict(session.clock)

    def back() -> None:
        session.seen, session.passed, session.clock = seen, passed, clock
        session.opened, session._open, session.drafted = None, set(), None

    parts = [group.checkpoint() for group in session.groups]
    journals = [journal for part in parts for journal in part.journals]
    rollbacks = [rollback for part in parts for rollback in part.rollbacks]
    kept = (session.memories, session.ledger, session.rehearsals)
    return Checkpoint((*journals,), (*rollbacks, *(one.checkpoint() for one in kept), back))
