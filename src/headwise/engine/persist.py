"""A session as one file: live entries only, bound to the model and the plan; continuing is token-identical."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from headwise.cache.evicted_mean import EvictedMean
from headwise.cache.state import State
from headwise.cache.states import expect_states
from headwise.engine.group import DECODE_INTERVAL, Group
from headwise.engine.recent import Recent
from headwise.engine.session import Session
from headwise.engine.session_facts import (
    SessionFacts,
    expect_group,
    expect_notes,
    refuse_counts,
    refuse_lanes,
    refuse_stored,
)
from headwise.errors import HeadwiseError, SessionError
from headwise.files import copied, read_tensors, write_tensors
from headwise.plan import Plan

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
        tensors |= {f"{place}.tail.{row}": one.all for row, one in group.tails.items()}
        tensors |= {f"{place}.uncounted.{row}": one.all for row, one in group.uncounted.items()}
        tensors |= {f"{place}.lse.{row}": one.all for row, one in group.lses.items()}
        if group.evicted_mean is not None:
            tensors |= {f"{place}.dropped.{name}": one for name, one in group.evicted_mean.state().items()}
    tensors |= {f"state.{place}": state for place, state in session.states.state().items()}
    tensors |= {f"memory.{place}": noted for place, noted in session.memories.state().items()}
    tensors |= {f"unheard.{row}": ids for row, ids in session.rehearsals.state().items()}
    write_tensors(Path(path), FORMAT, facts, tensors)


def session_extra(path: str | Path) -> dict[str, Any]:
    """The `extra` that a session was saved with, for those who must read in it which plan to load it by."""
    facts, _ = read_tensors(Path(path), FORMAT, SessionFacts, SessionError)
    return facts.extra


def load_session(path: str | Path, plan: Plan, **how: Any) -> tuple[Session, dict[str, Any]]:
    """A session that continues where the saved one stopped, and the `extra` it was saved with.

    `plan` must be the plan it was made under, for the same model: anything else is refused, and so is a file whose
    tensors are not what a session of this plan holds. `how` are Session's `device`, `ropes` and `tier`.
    """
    facts, tensors = read_tensors(Path(path), FORMAT, SessionFacts, SessionError)
    for what, have, expected in (("model", facts.model, plan.model), ("plan", facts.plan, plan.digest)):
        if have != expected:
            raise SessionError(f"{path} was made with {what} {have}, this is {expected}; load it with its own {what}")
    try:
        return _restored(facts, State(tensors), plan, **how), facts.extra
    except HeadwiseError as error:
        raise SessionError(f"{path} cannot be used: {error} (save the session again)") from None


def _restored(facts: SessionFacts, state: State, plan: Plan, **how: Any) -> Session:
    """The session, made once all that it would hold is known to fit."""
    refuse_counts(facts, plan, DECODE_INTERVAL)
    refuse_lanes(facts, plan, state)
    session = Session(plan, rows=facts.rows, dtype=facts.element, seed=facts.seed, marks=facts.marks, **how)
    groups = list(session.groups)
    for place, group in enumerate(groups):
        expect_group(group, state.under(f"{place}."), facts.seen, plan)
    noted = expect_notes(state.under("memory."), groups, facts.seen, plan)
    states = expect_states(state.under("state."), facts.rows, plan.geometry.states)
    session.rehearsals.restore(state.under("unheard."), facts.seen)
    state.refuse_others()
    for place, (group, counts) in enumerate(zip(groups, facts.groups, strict=True)):
        _restore(group, copied(state.under(f"{place}.").all(), session.device))
        group.planned, group.since, group.passed = map(list, (counts.planned, counts.since, counts.passed))
    refuse_stored(groups, facts.seen, plan)
    session.memories.restore(copied(noted, session.device))
    session.states.restore(copied(states, session.device))
    session.seen, session.passed, session.clock = list(facts.seen), facts.passed, facts.clock.model_dump()
    return session


def _restore(group: Group, own: dict[str, torch.Tensor]) -> None:
    """Give a group the tensors that are its own."""
    for kept, prefix in ((group.tails, "tail."), (group.uncounted, "uncounted."), (group.lses, "lse.")):
        names = [name for name in own if name.startswith(prefix)]
        kept.update({int(name.removeprefix(prefix)): Recent.of(own.pop(name)) for name in names})
    if group.evicted_mean is not None:
        group.evicted_mean = EvictedMean(**{name: own.pop(f"dropped.{name}") for name in group.evicted_mean.state()})
    group.store.restore(own)
