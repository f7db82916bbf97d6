"""Reading a prompt again before anything of it is evicted: what waits for it, and how it is read without being stored.

A method with a `rehearsal` (KVzip) scores tokens by the attention that a second reading gives them. The session knows
no model, so whoever runs one does this when a forward has ended with evictions waiting:

    for passage in passages(session):
        ...  # let the model read passage.ids; the attention of each layer is `listen(session, passage, layer, ...)`
    evict_waiting(session)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from headwise.cache.extras import note
from headwise.cache.journal import Rollback
from headwise.cache.span import Span
from headwise.cache.state import State
from headwise.choose import check_scores
from headwise.engine.demote import demote
from headwise.engine.evict import WITNESSES, evict, take_notes
from headwise.engine.group import Group, Phase, Step
from headwise.engine.layers import lanes_of, of_all_heads
from headwise.engine.read import Reading, read
from headwise.errors import SessionError
from headwise.forms import Scoring
from headwise.methods.rehearsal import Rehearsal

if TYPE_CHECKING:
    from headwise.engine.session import Session


@dataclass(frozen=True)
class Passage:
    """A piece of a prompt that is read again: ids [b, t], of which the last live[row] are no padding. told: by row, the
    true positions of the tokens that its last ids repeat; empty where a row has nothing left to read."""

    rehearsal: Rehearsal
    ids: torch.Tensor
    live: tuple[int, ...]
    told: tuple[range, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the longest row."""
        return self.ids.shape[1]


@dataclass(frozen=True)
class _Waiting:
    """A group whose eviction comes after the rehearsal, with the queries [heads, g, w, d] by row that it looks at."""

    reading: Reading
    group: Group
    queries: list[torch.Tensor]


class Rehearsals:
    """What of a session's prompt is to be read again, and which evictions wait for it.

    kinds: the different rehearsals of a plan; without any, nothing is noted here. unheard: by row, the ids [m] of the
    newest tokens, those that were stored since the last rehearsal.
    """

    def __init__(self, groups: Sequence[Group], rows: int) -> None:
        self.kinds = tuple(dict.fromkeys(one for group in groups if (one := group.rehearsal) is not None))
        self.unheard: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int64)] * rows
        self.waiting: list[_Waiting] = []

    def refuse(self, phase: Phase, tokens: int, ids: torch.Tensor | None) -> None:
        """Refuse a step of `tokens` whose ids [b, t] are wanted and not told, or before which evictions still wait."""
        if self.waiting:
            raise SessionError(
                "the evictions of the last prompt wait for it to be read again; run the model itself and not a part of "
                "it, or do what headwise.engine.rehearsal tells"
            )
        if self._listens(phase) and (ids is None or ids.shape != (len(self.unheard), tokens)):
            raise SessionError(
                f"the recipe has the prompt read again before it evicts, but the ids of {tokens} new tokens are not "
                "known; give the model input_ids, and no embeddings"
            )

    def take(self, step: Step, ids: torch.Tensor | None) -> None:
        """Note the ids [b, t] of a step that begins."""
        if self._listens(step.phase) and ids is not None:
            self.unheard = [
                torch.cat((own, row[step.tokens - live :]))
                for own, row, live in zip(self.unheard, ids.to("cpu", torch.int64), step.live, strict=True)
            ]

    def _listens(self, phase: Phase) -> bool:
        """Whether the tokens of a step are to be read again: what the model writes is not, but after a prompt that
        was left in the middle."""
        return bool(self.kinds) and (phase == "prefill" or any(map(len, self.unheard)))

    def again(self, phase: Phase, longest: int, seen: Sequence[int]) -> int:
        """Most tokens that are read again at once when the rows, which have seen so many, have come to `longest`."""
        if phase == "decode":
            return 0
        fresh = longest - min(have - len(own) for have, own in zip(seen, self.unheard, strict=True))
        return max((kind.longest(fresh) for kind in self.kinds), default=0)

    def postpones(self, group: Group, step: Step) -> bool:
        """Whether the group's eviction, due in this step, comes after the prompt was read again."""
        return group.rehearsal is not None and step.phase == "prefill"

    def wait(self, reading: Reading, group: Group, queries: list[torch.Tensor]) -> None:
        """Let a group's eviction wait, unless there is more of the prompt to come; queries [heads, g, w, d] by row."""
        step, most = reading.step, max(group.last_queries, WITNESSES)
        if all(total <= seen for total, seen in zip(step.total, step.seen, strict=True)):
            self.waiting.append(_Waiting(reading, group, [one[:, :, -most:].clone() for one in queries]))

    def truncate(self, removed: Sequence[int]) -> None:
        """Forget the last removed[row] tokens of each row."""
        self.unheard = [own[: max(0, len(own) - gone)] for own, gone in zip(self.unheard, removed, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with copies of these batch rows."""
        self.unheard = [self.unheard[row] for row in rows]

    def fork(self) -> Rehearsals:
        """An independent copy, between steps."""
        other = Rehearsals((), 0)
        other.kinds, other.unheard = self.kinds, list(self.unheard)
        return other

    def checkpoint(self) -> Rollback:
        """What to call to have again what there is now."""
        unheard = self.unheard

        def back() -> None:
            self.unheard, self.waiting = unheard, []

        return back

    def state(self) -> dict[str, torch.Tensor]:
        """The ids of each row that waits, by its number."""
        return {str(row): ids for row, ids in enumerate(self.unheard) if len(ids)}

    def restore(self, state: State, seen: Sequence[int]) -> None:
        """Take over what `state()` gave, of rows that have seen so many tokens; SessionError for anything else."""
        for row, most in enumerate(seen):
            if self.kinds and str(row) in state:
                ids = state.take(str(row), torch.int64, [None])
                if len(ids) > most or int(ids.min()) < 0:
                    raise SessionError(f"'{state.prefix}{row}' has {len(ids)} ids of a row that has seen {most} tokens")
                self.unheard[row] = ids.clone()


def passages(session: Session) -> Iterator[Passage]:
    """What the model is to read again now, in order, each time as a continuation of what the session has seen; nothing
    where no eviction waits for it."""
    unheard, waiting = session.rehearsals.unheard, session.rehearsals.waiting
    for kind in session.rehearsals.kinds if waiting else ():
        rows = [kind.passages(ids) for ids in unheard]
        for place in range(max(map(len, rows))):
            read = [own[place] if place < len(own) else (torch.zeros(0, dtype=torch.int64), range(0)) for own in rows]
            most = max(len(ids) for ids, _ in read)
            padded = torch.stack([torch.cat((ids.new_zeros(most - len(ids)), ids)) for ids, _ in read])
            starts = [have - len(ids) for have, ids in zip(session.seen, unheard, strict=True)]
            told = [range(first + part.start, first + part.stop) for first, (_, part) in zip(starts, read, strict=True)]
            yield Passage(kind, padded, tuple(len(ids) for ids, _ in read), tuple(told))


def listen(
    session: Session, passage: Passage, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Attention of one layer over what the session holds and the passage itself, which is not stored: q [b, H, t, d],
    k [b, h, t, d], v [b, h, t, e] -> [b, H, t, e]. What the passage's method makes of it is noted beside the tokens; a
    layer that reads what another one stores notes nothing."""
    reading = replace(session.reading(_step(session, passage), layer, scoring), aside=True)
    reads = session.plan.geometry.layers[layer].reads
    queries = session.grouped(reading.step, layer if reads is None else reads, q, k, v, q.shape[2])
    parts = []
    for group in session.layers[layer if reads is None else reads]:
        own = lanes_of(group, queries), lanes_of(group, k), lanes_of(group, v)
        parts.append(read(reading, group, *own))
        if group.rehearsal == passage.rehearsal and reads is None:
            _hear(reading, group, passage, *own)
    return (
        of_all_heads(session.layers[layer if reads is None else reads], parts)
        .out.unflatten(0, (session.rows, -1))
        .flatten(1, 2)
    )


def _step(session: Session, passage: Passage) -> Step:
    """The step that reads a passage; it counts nowhere."""
    seen = tuple(have + live for have, live in zip(session.seen, passage.live, strict=True))
    return Step(session.clock["steps"], "prefill", passage.tokens, passage.live, seen, seen, False)


def _hear(reading: Reading, group: Group, passage: Passage, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Let a group's method write down what the passage tells of the tokens that it repeats: q [lanes, g, t, d],
    k [lanes, t, d], v [lanes, t, e]."""
    method = group.recipe.evict
    for run in group.runs(by_row=True):
        row = group.row_of(run[0])
        told, live, lanes = passage.told[row], passage.live[row], slice(run[0], run[-1] + 1)
        if not len(told):
            continue
        held = group.store.segment(lanes.start, lanes.stop)
        keys = torch.cat((held.keys, k[lanes, -live:]), dim=1)
        values = torch.cat((held.values, v[lanes, -live:]), dim=1)
        noted = method.rehearse(reading.view(group, run, method, q[lanes, :, -live:], keys=keys, values=values), told)
        check_scores(noted.flatten(1))
        for lane, own, new in zip(run, held.positions, noted, strict=True):
            notes = group.store.extras("notes", lane, lane + 1)[0].clone()
            notes[(own >= told.start) & (own < told.stop)] = new.to(notes.dtype)
            note(group.store, lane, notes)


def evict_waiting(session: Session) -> None:
    """Do the evictions that waited, by what the rehearsal told of the prompt; without one, by nothing."""
    waiting, before = session.rehearsals.waiting, session.cache_bytes()
    if not waiting:
        return
    for one in waiting:
        bring_down(one.reading, one.group, one.queries, session.spans)
    session.rehearsals.waiting = []
    session.rehearsals.unheard = [ids[:0] for ids in session.rehearsals.unheard]
    session.ledger.byte_steps += session.cache_bytes() - before


def bring_down(reading: Reading, group: Group, queries: list[torch.Tensor], spans: Sequence[Span]) -> None:
    """Let a group evict to its plan, and its compression move what stays; queries [heads, g, w, d] by row."""
    take_notes(reading, group, queries)
    evict(reading, reading.plan, group, queries)
    demote(reading, group, queries, spans)
