"""A session as one file: live entries only, bound to the model and the plan; continuing is token-identical."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from headwise.cache.dropped import Dropped
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.files import read_tensors, write_tensors
from headwise.plan import Plan
from headwise.shapes import Mark

FORMAT = "headwise-session-2"


def save_session(session: Session, path: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write the session, whole or not at all. `extra` is JSON data that `load_session` gives back.

    SessionError in the middle of a step.
    """
    session.between_steps("save")
    facts = {
        "plan": session.plan.digest,
        "model": session.plan.model,
        "dtype": str(session.dtype),
        "rows": session.rows,
        "seed": session.seed,
        "seen": session.seen,
        "groups": [{"planned": g.planned, "since": g.since, "passed": g.passed} for g in session.groups],
        "passed": session.passed,
        "clock": session.clock,
        "marks": [asdict(mark) for mark in session.marks],
        "extra": extra or {},
    }
    tensors: dict[str, torch.Tensor] = {}
    for place, group in enumerate(session.groups):
        tensors |= {f"{place}.{name}": plane for name, plane in group.store.state().items()}
        tensors |= {f"{place}.tail.{row}": queries for row, queries in group.tails.items()}
        tensors |= {f"{place}.uncounted.{row}": queries for row, queries in group.uncounted.items()}
        tensors |= {f"{place}.lse.{row}": lse for row, lse in group.lses.items()}
        if group.dropped is not None:
            tensors |= {f"{place}.dropped.{name}": one for name, one in group.dropped.state().items()}
    tensors |= {f"memory.{place}": noted for place, noted in session.memories.state().items()}
    write_tensors(Path(path), FORMAT, facts, tensors)


def load_session(path: str | Path, plan: Plan, **how: Any) -> tuple[Session, dict[str, Any]]:
    """A session that continues where the saved one stopped, and the `extra` it was saved with.

    `plan` must be the plan it was made under, for the same model: anything else is refused. `how` are Session's
    `device`, `ropes` and `tier`.
    """
    facts, tensors = read_tensors(Path(path), FORMAT, SessionError)
    for what, have, expected in (("model", facts["model"], plan.model), ("plan", facts["plan"], plan.digest)):
        if have != expected:
            raise SessionError(f"{path} was made with {what} {have}, this is {expected}; load it with its own {what}")
    dtype = getattr(torch, facts["dtype"].removeprefix("torch."))
    marks = [Mark(**mark) for mark in facts["marks"]]
    session = Session(plan, rows=facts["rows"], dtype=dtype, seed=facts["seed"], marks=marks, **how)
    session.seen = list(facts["seen"])
    session.passed, session.clock = facts["passed"], facts["clock"]
    for place, (group, counts) in enumerate(zip(session.groups, facts["groups"], strict=True)):
        own = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{place}.")}
        for kept, prefix in ((group.tails, "tail."), (group.uncounted, "uncounted."), (group.lses, "lse.")):
            names = [name for name in own if name.startswith(prefix)]
            kept.update({int(name.removeprefix(prefix)): own.pop(name).to(session.device) for name in names})
        if group.dropped is not None:
            means = {name: own.pop(f"dropped.{name}").to(session.device) for name in group.dropped.state()}
            group.dropped = Dropped(**means)
        group.store.restore(own)
        group.planned, group.since, group.passed = counts["planned"], counts["since"], counts["passed"]
    noted = {name.removeprefix("memory."): one for name, one in tensors.items() if name.startswith("memory.")}
    session.memories.restore({place: one.to(session.device) for place, one in noted.items()})
    return session, facts["extra"]
