"""All that a session holds, to compare: tensors bit for bit, counts, clocks, memories, the ledger, bytes."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import torch

from headwise.engine.session import Session


def state(session: Session) -> dict[str, Any]:
    """Everything by name. Tensors are copies, where they lie does not matter."""
    found: dict[str, Any] = {
        "rows": session.rows,
        "seen": list(session.seen),
        "passed": session.passed,
        "clock": dict(session.clock),
        "marks": session.marks,
        "open": (session.opened, sorted(session._open)),
    }
    for name in (field.name for field in fields(session.ledger)):
        found[f"ledger.{name}"] = copy.deepcopy(getattr(session.ledger, name))
    found |= {f"memory.{place}": one.clone() for place, one in session.memories.state().items()}
    for place, group in enumerate(session.groups):
        own: dict[str, Any] = {"planned": list(group.planned), "since": list(group.since), "passed": list(group.passed)}
        own["lengths"] = list(group.store.lengths)
        own["bytes"] = group.nbytes
        own |= {f"store.{name}": one.clone() for name, one in group.store.state().items()}
        for kind in ("tails", "uncounted", "lses"):
            own |= {f"{kind}.{row}": one.all.clone() for row, one in getattr(group, kind).items()}
        if group.evicted_mean is not None:
            own |= {f"dropped.{name}": one.clone() for name, one in group.evicted_mean.state().items()}
        found |= {f"{place}.{name}": one for name, one in own.items()}
    return found


def differences(have: dict[str, Any], want: dict[str, Any], ignoring: tuple[str, ...] = ()) -> list[str]:
    """The names of what differs between two states, each with both sides where they are short."""
    return [
        f"{name}: {_short(have.get(name))} is not {_short(want.get(name))}"
        for name in sorted(have.keys() | want.keys())
        if not name.endswith(ignoring) and not _equal(have.get(name), want.get(name))
    ]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.equal(*(side.contiguous().flatten().view(torch.uint8) for side in (one, other)))
    return not isinstance(one, torch.Tensor) and not isinstance(other, torch.Tensor) and one == other


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} {value.flatten()[:4].tolist()}"
    return repr(value)[-120:]
