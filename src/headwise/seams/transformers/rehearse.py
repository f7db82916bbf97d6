"""Letting a model read its prompt again for the methods that want it, over what its cache holds and storing nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headwise.engine.rehearsal import evict_waiting, passages
from headwise.seams.transformers.forward import forward, padding

if TYPE_CHECKING:
    from headwise.seams.transformers.session_door import SessionDoor


def rehearse(model: torch.nn.Module, door: SessionDoor) -> None:
    """Where evictions of a prompt wait: read it again with `model`, then evict. An error leaves them waiting, for
    `abort` to take the prompt back."""
    session = door.session
    if session is None:
        return
    for passage in passages(session):
        door.passage, read = passage, session.states
        session.states = read.fork()  # what is read again is passed on to nobody
        try:
            with torch.no_grad():
                where = padding(session, passage.live, passage.tokens)
                forward(model, door, passage.ids.to(session.device), logits_to_keep=1, **where)
        finally:
            door.passage, session.states = None, read
    evict_waiting(session)
