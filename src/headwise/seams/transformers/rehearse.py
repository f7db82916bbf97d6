"""Letting a model read its prompt again for the methods that want it, over what its cache holds and storing nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headwise.engine.rehearsal import Passage, evict_waiting, passages
from headwise.engine.session import Session
from headwise.seams.transformers.forward import forward

if TYPE_CHECKING:
    from headwise.seams.transformers.session_door import SessionDoor


def rehearse(model: torch.nn.Module, door: SessionDoor) -> None:
    """Where evictions of a prompt wait: read it again with `model`, then evict. An error leaves them waiting, for
    `abort` to take the prompt back."""
    session = door.session
    if session is None:
        return
    for passage in passages(session):
        door.passage = passage
        try:
            with torch.no_grad():
                forward(model, door, passage.ids.to(session.device), logits_to_keep=1, **_padding(session, passage))
        finally:
            door.passage = None
    evict_waiting(session)


def _padding(session: Session, passage: Passage) -> dict[str, torch.Tensor]:
    """What tells a forward where the rows of a passage stand, unless all of them stand where their columns do."""
    if all(live == passage.tokens for live in passage.live) and all(have == session.passed for have in session.seen):
        return {}
    live = torch.tensor(passage.live)[:, None]
    now = torch.arange(passage.tokens)[None] - (passage.tokens - live)  # below 0: padding
    before = torch.arange(session.passed)[None] >= session.passed - torch.tensor(session.seen)[:, None]
    mask = torch.cat((before, now >= 0), dim=1).long()
    positions = (torch.tensor(session.seen)[:, None] + now).clamp(min=0)
    return {"attention_mask": mask.to(session.device), "position_ids": positions.to(session.device)}
