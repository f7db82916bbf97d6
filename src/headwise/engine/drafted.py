"""Drafted tokens: read in one step as so many single steps would read them, kept only as far as they are accepted.

Between two evictions a step does nothing but append, so that taking tokens back is cutting them off. A draft therefore
ends before the token that evicts, which is read by itself (`room`); what an eviction or a compression will look at, the
last queries, is handed over when it is known which tokens stay. A selection chooses for each token by itself, in the
order of the tokens, with the notes and summaries that there would have been at that token: layer after layer holds all
that a token's attention depends on, so that nothing but the order of computing differs from single steps.

    begin_drafted(session, tokens)      # the first token is certain, the others are guesses
    ...                                 # session.step(layer, ...) of every layer
    accept(session, count)              # the first `count` stay; or session.abort(): none does
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from headwise.cache.journal import Rollback
from headwise.engine.group import DECODE_INTERVAL, Group, Step
from headwise.engine.layers import lanes_of
from headwise.engine.memory import REACH
from headwise.engine.read import Reading
from headwise.errors import SessionError
from headwise.geometry import Geometry
from headwise.plan import Plan

if TYPE_CHECKING:
    from headwise.engine.session import Session

_Queries = tuple[dict[int, torch.Tensor], ...]


@dataclass(frozen=True)
class _Looked:
    """Queries [lanes, g, t, d] of a group that looks back, with their lse [lanes, g, t] where it is kept; `before`:
    what it kept of queries before them."""

    group: Group
    before: _Queries
    queries: torch.Tensor
    lse: torch.Tensor | None


@dataclass
class Drafted:
    """A step of `tokens` drafted ones, and what of it waits until it is known how many stay.

    before: tokens passed, and those since the last eviction, before the step. counts: by group, what it had counted of
    each row: since the last eviction, passed. summaries: by token, what makes the summaries again what they were when
    it had been read.
    """

    step: Step
    before: tuple[int, int]
    counts: list[tuple[Group, list[int], list[int]]]
    summaries: list[list[Rollback]]
    looked: list[_Looked] = field(default_factory=list)

    def single_steps(self) -> Iterator[tuple[Step, slice]]:
        """Each token as a step of its own, and where it is among those of the draft."""
        step = self.step
        for place in range(step.tokens):
            seen = tuple(have - step.tokens + place + 1 for have in step.seen)
            yield replace(step, tokens=1, live=(1,) * len(seen), seen=seen), slice(place, place + 1)


def room(session: Session) -> int:
    """Most tokens that a drafted step may have now: it ends before the next eviction, and before positions do. 0 where
    the evictions of a prompt wait for it to be read again."""
    if not max(session.seen) or any(map(len, session.rehearsals.unheard)):
        return 0
    longest = session.plan.longest
    left = REACH if longest is None else longest - max(session.seen)
    return max(0, min(REACH, DECODE_INTERVAL - 1 - session.clock["since_eviction"], left))


def refuse_drafts(plan: Plan) -> None:
    """Refuse a plan under which drafted tokens cannot be read in one pass as single steps would read them, and one of a
    model that cannot forget those that are not accepted."""
    refuse_states(plan.geometry)
    for part in {recipe.select for row in plan.recipes for recipe in row if recipe.select is not None}:
        if part.waits_for_layers:
            raise SessionError(
                f"'{part.name}' chooses by what later layers noted at the token before, so that drafted tokens cannot "
                "be read in one pass; use another selection, such as quest, or no drafts"
            )


def refuse_states(geometry: Geometry) -> None:
    """Refuse drafts that are read by a model with layers that pass a state on."""
    if passing := sum(map(bool, geometry.states)):
        raise SessionError(
            f"{passing} of the model's {len(geometry.layers)} layers pass on a state, which cannot go back by the "
            "tokens of a draft that are not accepted; use no drafts there, and let no such model draft"
        )


def refuse_drafted(session: Session, what: str) -> None:
    """Refuse to do `what` while tokens are held of which nobody has said how many are accepted."""
    if session.drafted is not None:
        raise SessionError(f"cannot {what} before drafted tokens are accepted or taken back; see engine/drafted.py")


def begin_drafted(session: Session, tokens: int, ids: torch.Tensor | None = None) -> None:
    """Announce a step of `tokens` drafted ones in every row, as `Session.begin` does; it is open to be taken back until
    it is accepted. SessionError for more than there is `room` for."""
    refuse_drafts(session.plan)
    most = room(session)
    if tokens > most:
        raise SessionError(
            f"{tokens} drafted tokens are more than the {most} that can be taken back now; propose fewer"
        )
    before = session.passed, session.clock["since_eviction"]
    counts = [(group, list(group.since), list(group.passed)) for group in session.groups]
    session.begin(tokens, "decode", ids=ids)
    assert session.opened is not None, "it has just begun"
    session.drafted = Drafted(session.opened, before, counts, [[] for _ in range(tokens)])


def read_drafted(
    session: Session, reading: Reading, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Attention of one layer: q [b, h, g, t, d], k [b, h, t, d], v [b, h, t, e] -> [b * h, g, t, e]. All tokens at once
    where nothing is selected, else one after the other."""
    drafted, groups = session.drafted, session.layers[layer]
    assert drafted is not None, "begin_drafted made it"
    singly = any(group.recipe.select is not None for group in groups)
    parts = []
    for step, new in drafted.single_steps() if singly else [(drafted.step, slice(None))]:
        own = q[:, :, :, new].contiguous(), k[:, :, new].contiguous(), v[:, :, new].contiguous()
        parts.append(session.take_and_read(replace(reading, step=step), layer, *own))
        if singly:
            drafted.summaries[new.start] += [group.store.summaries.checkpoint() for group in groups]
    lses = torch.cat([part.lse for part in parts], dim=2)
    for group in groups:
        if group.looks_back:
            lse = lanes_of(group, lses.unflatten(0, (session.rows, -1))) if group.keeps_lse else None
            before = tuple(map(dict, (group.tails, group.uncounted, group.lses)))
            drafted.looked.append(_Looked(group, before, lanes_of(group, q), lse))
    return torch.cat([part.out for part in parts], dim=2)


def accept(session: Session, tokens: int) -> None:
    """Keep the first `tokens` of the drafted step, in every row: everything is as after so many single steps.

    Interrupted, it is called again, with the same number. SessionError where nothing was drafted, in the middle of the
    step, and for a number that was not drafted.
    """
    drafted = session.drafted
    if drafted is None:
        raise SessionError("nothing was drafted that could be accepted; see begin_drafted")
    if not 1 <= tokens <= drafted.step.tokens:
        raise SessionError(f"cannot accept {tokens} of {drafted.step.tokens} drafted tokens; 1 at least, and no more")
    session.commit()
    if session.opened is not None:
        raise SessionError("cannot accept drafted tokens in the middle of their step; call abort() first")
    gone = drafted.step.tokens - tokens
    step = replace(
        drafted.step,
        tokens=tokens,
        live=(tokens,) * session.rows,
        seen=tuple(have - gone for have in drafted.step.seen),
    )
    if gone:
        for group in session.groups:
            group.store.truncate([limit for limit in step.seen for _ in group.heads])
        for back in drafted.summaries[tokens - 1]:
            back()
        session.memories.truncate(step.seen)
    for group, since, before in drafted.counts:
        group.since, group.passed = [have + tokens for have in since], [have + tokens for have in before]
    for one in drafted.looked:
        one.group.tails, one.group.uncounted, one.group.lses = map(dict, one.before)
        lse = None if one.lse is None else one.lse[:, :, :tokens]
        one.group.queries_of(step, one.queries[:, :, :tokens], lse)
    columns, since_eviction = drafted.before
    session.seen, session.passed = list(step.seen), columns + tokens
    session.clock["since_eviction"] = since_eviction + tokens
    session.drafted = None
    session.ledger.drafts += {"passes": 1, "proposed": drafted.step.tokens - 1, "accepted": tokens - 1}
