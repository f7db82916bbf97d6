"""The report of a session, as text, and where its tokens are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headwise.engine.budget import meanings
from headwise.errors import SessionError
from headwise.shapes import format_bytes

if TYPE_CHECKING:
    from headwise.engine.session import Session


def remarks(session: Session) -> list[str]:
    """What was done otherwise than a reader of the recipe would expect, so far; as text."""
    longest = max(session.seen)
    short = {part: None for group in session.groups for part in group.looking if part.last_queries > longest}
    return [
        *meanings(session.plan, session.counted),
        *session.ledger.floor_lines(),
        *(
            f"'{part.name}' looks at the last {part.last_queries} queries; there were {longest}, so all of them count"
            for part in short
        ),
    ]


def report(session: Session) -> str:
    """Bytes, backends, and by layer and KV head the tokens kept and attention lost, of the first row; as text."""
    ledger, lost = session.ledger, session.ledger.lost_mass(session.plan.geometry.kv_heads)
    lines = [
        f"{session.seen[0]} tokens seen; {format_bytes(session.cache_bytes())} held, "
        f"{format_bytes(session.predicted_bytes())} predicted, {format_bytes(session.dense_bytes())} dense; "
        f"peak {format_bytes(ledger.peak_bytes)}",
        "calls by backend: "
        + ", ".join(f"{name} {count} ({phase})" for (phase, name), count in ledger.backends.items()),
        *(
            f"{backend} did not take {op} in {count} calls: {reason}"
            for (op, backend, reason), count in ledger.refusals.most_common()
        ),
        *session.remarks(),
        *ledger.draft_lines(),
        *(f"{name} stepped aside in {count} reads" for name, count in ledger.stepped_aside.items()),
    ]
    if session.tier is not None:
        lines.append(
            f"keys and values: at most {format_bytes(session.tier.resident)} resident; carried to and from the tier: "
            + ", ".join(f"{format_bytes(ledger.moved_per_token(phase))} a token ({phase})" for phase in ledger.steps)
        )
    if session.states:
        governed, states = session.governed_bytes(), session.states.nbytes
        lines.append(
            f"the plan governs {format_bytes(governed)}, {governed / (governed + states):.1%} of what is held; the "
            f"rest, {format_bytes(states)}, are states that {len(session.states.layers)} layers pass on as they are"
        )
    lines.append("tokens kept (attention lost) by KV head:")
    for layer in session.plan.geometry.attending:
        shares = lost[layer]
        cells = zip(session.lengths(layer)[0].tolist(), shares, strict=True)
        lines.append(f"layer {layer:3}  " + "  ".join(f"{kept:6} ({share:6.1%})" for kept, share in cells))
    return "\n".join(lines)


def positions(session: Session, layer: int, row: int, head: int) -> torch.Tensor:
    """True positions [n] of the tokens that a KV head stores, ascending."""
    for group in session.layers[layer]:
        if head in group.heads:
            return group.store.positions(group.lanes(row)[group.heads.index(head)])
    last = session.plan.geometry.layers[layer].kv_heads - 1
    raise SessionError(f"layer {layer} has no KV head {head}; heads are 0 to {last}")
