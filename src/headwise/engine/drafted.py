"""Drafted tokens: read in one step as so many single steps would read them, kept only as far as they are accepted.

Between two evictions a step does nothing but append, so that taking tokens back is cutting them off. A draft therefore
ends before the token that evicts, which is read by itself (`room`); what an eviction or a compression will look at, the
last queries, is handed over when it is known which tokens stay. A selection chooses for each token by itself, in the
order of the tokens, with the notes and summaries that there would have been at that token: layer after layer holds all
that a token's attention depends on, so that nothing but the order of computing differs from single steps.

Guesses may also be a tree, of which each node sees what is stored and the nodes that it follows. Its nodes are stored
one after the other while it is read; the path that stays is then written anew, so that it lies as single steps would
have left it.

    begin_drafted(session, tokens)      # the first token is certain, the others are guesses
    ...                                 # session.step(layer, ...) of every layer
    accept(session, range(count))       # the first `count` stay; or session.abort(): none does

    begin_drafted(session, 5, tree=Tree((-1, 0, 1, 0, 3)))  # after the first token two guesses of two tokens
    accept(session, (0, 3, 4))          # the second one was right
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from headwise.cache.journal import Rollback
from headwise.engine.group import DECODE_INTERVAL, Group, Step
from headwise.engine.layers import lanes_of
from headwise.engine.memory import REACH
from headwise.engine.read import Reading
from headwise.engine.recent import Recent
from headwise.engine.steered import steering
from headwise.errors import SessionError
from headwise.forms import Tree
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe

if TYPE_CHECKING:
    from headwise.engine.session import Session

NODES = 64  # most tokens of a drafted tree, the certain one included

_Queries = tuple[dict[int, Recent], ...]


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
    it had been read. entries: of a tree that branches, keys and values [lanes, t, width] of its nodes, by group.
    singly: whether each token reads by itself, in their order: what comes out has the bits of single steps then.
    """

    step: Step
    tree: Tree
    before: tuple[int, int]
    counts: list[tuple[Group, list[int], list[int]]]
    summaries: list[list[Rollback]]
    looked: list[_Looked] = field(default_factory=list)
    entries: list[tuple[Group, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    singly: bool = False

    def single_steps(self) -> Iterator[tuple[Step, slice]]:
        """Each token as a step of its own, and where it is among those of the draft."""
        step = self.step
        for place in range(step.tokens):
            seen = tuple(have - step.tokens + place + 1 for have in step.seen)
            yield replace(step, tokens=1, live=(1,) * len(seen), seen=seen), slice(place, place + 1)


def room(session: Session) -> int:
    """Most tokens that may follow each other in a drafted step now, which ends before the next eviction, and before
    positions do. 0 where the evictions of a prompt wait for it to be read again."""
    if not max(session.seen) or any(map(len, session.rehearsals.unheard)):
        return 0
    return max(0, min(REACH, DECODE_INTERVAL - 1 - session.clock["since_eviction"], nodes_left(session)))


def nodes_left(session: Session) -> int:
    """Most tokens of a drafted tree now, each of which takes a position while it is read."""
    longest = session.plan.longest
    return NODES if longest is None else min(NODES, longest - max(session.seen))


def chains_only(session: Session) -> str | None:
    """Why drafts have to be chains and no trees, or None."""
    for part in {recipe.select for row in session.plan.recipes for recipe in row if recipe.select is not None}:
        return f"'{part.name}' chooses for every token by itself, in the order of the tokens"
    for part in steering(session.plan):
        return f"'{part.name}' steers what every token reads"
    if any(layer.chunked for layer in session.plan.geometry.layers):
        return "layers attend within chunks"
    return f"{session.rows} rows go on together" if session.rows > 1 else None


def refuse_drafts(plan: Plan) -> None:
    """Refuse a plan under which drafted tokens cannot be read in one pass as single steps would read them, and one of a
    model that cannot forget those that are not accepted."""
    refuse_states(plan.geometry)
    if plan.geometry.reading:
        raise SessionError(
            f"{len(plan.geometry.reading)} of the model's {len(plan.geometry.layers)} layers read what another one "
            "stores, which is not done for drafted tokens; use no drafts there"
        )
    refuse_whole({recipe for row in plan.recipes for recipe in row})
    for part in {recipe.select for row in plan.recipes for recipe in row if recipe.select is not None}:
        if part.waits_for_layers:
            raise SessionError(
                f"'{part.name}' chooses by what later layers noted at the token before, so that drafted tokens cannot "
                "be read in one pass; use another selection, such as quest, or no drafts"
            )


def refuse_whole(recipes: Iterable[Recipe]) -> None:
    """Refuse recipes with a method that says of nothing but whole prompts what it does."""
    for part in (part for recipe in recipes for part in recipe.parts):
        if part.own_card.chunking == "whole_prompt":
            raise SessionError(
                f"'{part.name}' must see the whole prompt at once, and drafts are read several tokens at a time; use "
                "another method, or no drafts"
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


def begin_drafted(
    session: Session, tokens: int, ids: torch.Tensor | None = None, tree: Tree | None = None, singly: bool = False
) -> None:
    """Announce a step of `tokens` drafted ones in every row, as `Session.begin` does; it is open to be taken back until
    it is accepted. tree: how they follow each other; None for a chain. singly: see `Drafted`. SessionError for more
    than there is `room` for, and for a tree where there can be none."""
    refuse_drafts(session.plan)
    tree = Tree(range(-1, tokens - 1)) if tree is None else tree
    tree.check(tokens, tokens)
    if tree.branches and (reason := "each token reads by itself" if singly else chains_only(session)) is not None:
        raise SessionError(f"drafted tokens cannot be a tree here, as {reason}; draft a chain")
    for count, most in ((max(tree.depths) + 1, room(session)), (tokens, nodes_left(session))):
        if count > most:
            raise SessionError(
                f"{count} drafted tokens are more than the {most} that can be taken back now; propose fewer"
            )
    before = session.passed, session.clock["since_eviction"]
    counts = [(group, list(group.since), list(group.passed)) for group in session.groups]
    session.begin(tokens, "decode", ids=ids)
    assert session.opened is not None, "it has just begun"
    session.drafted = Drafted(session.opened, tree, before, counts, [[] for _ in range(tokens)], singly=singly)


def read_drafted(
    session: Session, reading: Reading, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Attention of one layer: q [b, h, g, t, d], k [b, h, t, d], v [b, h, t, e] -> [b * h, g, t, e]. All tokens at once
    where nothing is selected and none is to read by itself, else one after the other."""
    drafted, groups = session.drafted, session.layers[layer]
    assert drafted is not None, "begin_drafted made it"
    singly = drafted.singly or any(group.recipe.select is not None for group in groups)
    if drafted.tree.branches:
        reading = replace(reading, tree=drafted.tree)
        drafted.entries += [(group, lanes_of(group, k), lanes_of(group, v)) for group in groups]
    parts = []
    for step, new in drafted.single_steps() if singly else [(drafted.step, slice(None))]:
        own = q[:, :, :, new].contiguous(), k[:, :, new].contiguous(), v[:, :, new].contiguous()
        parts.append(session.take_and_read(replace(reading, step=step), layer, *own))
        if singly:
            drafted.summaries[new.start] += [group.store.summaries.checkpoint() for group in groups]
    note_looked(session, layer, q, torch.cat([part.lse for part in parts], dim=2))
    return torch.cat([part.out for part in parts], dim=2)


def note_looked(session: Session, layer: int, q: torch.Tensor, lses: torch.Tensor) -> None:
    """Keep the queries q [b, h, g, t, d] of a layer that has read drafted tokens, with lses [b * h, g, t], until it is
    known which of them stay."""
    assert session.drafted is not None, "begin_drafted made it"
    for group in session.layers[layer]:
        if group.looks_back:
            lse = lanes_of(group, lses.unflatten(0, (session.rows, -1))) if group.keeps_lse else None
            before = tuple(map(dict, (group.tails, group.uncounted, group.lses)))
            session.drafted.looked.append(_Looked(group, before, lanes_of(group, q), lse))


def accept(session: Session, path: Sequence[int]) -> None:
    """Keep of the drafted step the tokens at the places `path`, in every row, from the first on, each the next of the
    one before: everything is as after so many single steps.

    Interrupted, it is called again, with the same path. SessionError where nothing was drafted, in the middle of the
    step, and for a path that is none.
    """
    drafted = session.drafted
    if drafted is None:
        raise SessionError("nothing was drafted that could be accepted; see begin_drafted")
    drafted_tokens, parents = drafted.step.tokens, drafted.tree.parents
    follows = zip(path, (-1, *path), strict=False)
    if not path or not all(0 <= one < drafted_tokens and parents[one] == before for one, before in follows):
        raise SessionError(
            f"{list(path)} is no path through {drafted_tokens} drafted tokens, which follow {list(parents)}; begin "
            "with 0 and go on with one that follows it"
        )
    session.commit()
    if session.opened is not None:
        raise SessionError("cannot accept drafted tokens in the middle of their step; call abort() first")
    tokens, gone = len(path), drafted_tokens - len(path)
    seen = tuple(have - gone for have in drafted.step.seen)
    step = replace(drafted.step, tokens=tokens, live=(tokens,) * session.rows, seen=seen)
    _keep_path(session, drafted, path, step)
    for group, since, passed in drafted.counts:
        group.since, group.passed = [have + tokens for have in since], [have + tokens for have in passed]
    for one in drafted.looked:
        one.group.tails, one.group.uncounted, one.group.lses = map(dict, one.before)
        lse = None if one.lse is None else one.lse[:, :, path]
        one.group.remember(step, one.queries[:, :, path], lse)
    columns, since_eviction = drafted.before
    session.seen, session.passed = list(seen), columns + tokens
    session.clock["since_eviction"] = since_eviction + tokens
    session.drafted = None
    session.ledger.drafts += {"passes": 1, "proposed": drafted_tokens - 1, "accepted": tokens - 1}


def _keep_path(session: Session, drafted: Drafted, path: Sequence[int], step: Step) -> None:
    """Cut the stores off where the path leaves the order in which its tokens lie, and write the rest of it anew. step:
    what the path is as a step."""
    same = sum(place == token for place, token in enumerate(path))  # nodes follow those before them: then all before
    if same < drafted.step.tokens:
        limits = [have - len(path) + same for have in step.seen]
        for group in session.groups:
            group.store.truncate([limit for limit in limits for _ in group.heads])
        for back in drafted.summaries[same - 1]:
            back()
        session.memories.truncate(limits)
    if same < len(path):
        rest = list(path[same:])
        for group, keys, values in drafted.entries:
            positions = step.positions[:, same:].to(keys.device).repeat_interleave(len(group.heads), 0)
            group.store.append(keys[:, rest], values[:, rest], positions)
