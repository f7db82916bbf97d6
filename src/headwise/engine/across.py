"""Attention across two sequences: what an encoder made of its input is stored once, and a decoder's tokens read it.

The encoder's tokens are a session's one prompt. The decoder's are never stored there: each sees all that is kept. To
methods they stand behind it, at the positions that follow, so that what looks at last queries looks at the decoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from headwise.attention import attend
from headwise.engine.group import Group, Phase, Step
from headwise.engine.layers import lanes_of, of_all_heads
from headwise.engine.read import Reading, count_mass, read
from headwise.engine.rehearsal import bring_down
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Attended, Full, Scoring
from headwise.kernels.dispatch import noting
from headwise.plan import Plan
from headwise.shapes import want


def refuse_across(plan: Plan) -> None:
    """Refuse what means nothing where queries and keys are of two sequences."""
    for part in {part for row in plan.recipes for recipe in row for part in recipe.parts}:
        why = None
        if part.part in ("prefill", "steer"):
            why = "an encoder's keys are no prompt of the decoder's, of which pairs could be left out or steered"
        elif "memory" in part.view_needs or (part.part == "select" and part.repositions):
            why = "it follows a text from step to step, and the decoder's steps add nothing to what is stored"
        elif part.part == "evict" and part.rehearsal is not None:
            why = "it has the model read its prompt again, and an encoder's input is not read by the decoder"
        if why is not None:
            raise SessionError(f"'{part.name}' cannot be used across two sequences: {why}; leave it out of cross")


def to_the_left(x: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """x [b, h, n, d] with the padding of each row, where live [b, n] is False, before its tokens, as sessions take it.
    Which of an encoder's tokens comes first makes no difference to attention."""
    order = live.long().argsort(dim=1, stable=True)
    return x.gather(2, order[:, None, :, None].expand_as(x))


def take_across(
    session: Session, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Store the encoder's keys k [b, h, n, d] and values v [b, h, n, e] of one layer in the announced step, and let the
    decoder's first queries q [b, H, t, d] read them as they came: [b, H, t, e]. Then the recipe evicts, for good."""
    reading = session.turn(layer, scoring)
    queries, step = _grouped(session, layer, q), reading.step
    own = session.plan.geometry.layers[layer]
    want(k, "b h n d", b=session.rows, h=own.kv_heads, n=step.tokens, d=own.key_width)
    want(v, "b h n e", b=session.rows, h=own.kv_heads, n=step.tokens, e=own.value_width)
    asking = replace(reading, step=_step(session, "prefill", q.shape[2]), across=True)
    parts = []
    with noting(partial(session.ledger.note, "prefill")):
        for group in session.layers[layer]:
            given = lanes_of(group, queries), lanes_of(group, k), lanes_of(group, v)
            session._take_in(reading, group, *given)
            parts.append(_as_they_came(asking, reading.step, group, *given))
            _evict(session, asking, group, given[0], parts[-1].lse if group.keeps_lse else None)
    session.done(step, layer)
    return _by_row(session, of_all_heads(session.layers[layer], parts).out)


def read_across(session: Session, layer: int, q: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """What the decoder's next queries q [b, H, t, d] read of one layer: [b, H, t, e]. Where a recipe selects, each of
    them has a selection of its own."""
    queries = _grouped(session, layer, q)
    step = _step(session, "decode", q.shape[2])
    reading = replace(session.reading(step, layer, scoring), across=True)
    parts = []
    with noting(partial(session.ledger.note, "decode")):
        for group in session.layers[layer]:
            own = lanes_of(group, queries)
            pieces = own.split(1 if group.recipe.select is not None else own.shape[2], dim=2)
            parts.append(_side_by_side([_read(session, reading, group, piece) for piece in pieces]))
    return _by_row(session, of_all_heads(session.layers[layer], parts).out)


def _read(session: Session, reading: Reading, group: Group, q: torch.Tensor) -> Attended:
    """What queries [lanes, g, t, d] read of what a group keeps; there are no new keys."""
    own = session.plan.geometry.layers[group.layer]
    none = q.new_zeros(len(q), 0, own.key_width), q.new_zeros(len(q), 0, own.value_width)
    at_once = replace(reading, step=_step(session, "decode", q.shape[2]))
    return read(at_once, group, q, *none)


def _as_they_came(
    asking: Reading, stored: Step, group: Group, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Attended:
    """The first queries, q [lanes, g, t, d], over keys and values k [lanes, n, d], v [lanes, n, e] before a codec or an
    eviction has touched them; padding of the encoder stands on the left."""
    rows = [(group.lanes(row), stored.tokens - live) for row, live in enumerate(stored.live)]
    if not stored.padded:
        return asking.whole(attend(q, k, v, Full(), asking.scoring), group.heads)
    every = [slice(lanes.start, lanes.stop) for lanes, _ in rows]
    parts = [
        attend(q[lanes], k[lanes, padding:], v[lanes, padding:], Full(), asking.scoring)
        for lanes, (_, padding) in zip(every, rows, strict=True)
    ]
    whole = Attended(torch.cat([one.out for one in parts]), torch.cat([one.lse for one in parts]))
    return asking.whole(whole, group.heads)


@torch.no_grad()
def _evict(session: Session, asking: Reading, group: Group, q: torch.Tensor, lse: torch.Tensor | None) -> None:
    """Bring a group down to its plan by the decoder's first queries [lanes, g, t, d]; they are not kept, as nothing is
    evicted later."""
    group.remember(asking.step, q, lse)
    if group.counts_mass:
        count_mass(asking, group)
    bring_down(asking, group, group.queries_of(asking.step, q), session.spans)
    group.tails.clear()


def _step(session: Session, phase: Phase, tokens: int) -> Step:
    """The step of `tokens` queries of the decoder, which stand behind what the encoder gave."""
    seen = tuple(have + tokens for have in session.seen)
    return Step(session.clock["steps"], phase, tokens, (tokens,) * session.rows, seen, tuple(session.seen), True)


def _grouped(session: Session, layer: int, q: torch.Tensor) -> torch.Tensor:
    """Queries [b, H, t, d] of a layer by KV head: [b, h, g, t, d]."""
    own = session.plan.geometry.layers[layer]
    want(q, "b H t d", b=session.rows, H=own.query_heads, d=own.key_width)
    return q.unflatten(1, (own.kv_heads, -1))


def _side_by_side(parts: Sequence[Attended]) -> Attended:
    """Results of neighbouring queries as one."""
    return Attended(torch.cat([one.out for one in parts], dim=2), torch.cat([one.lse for one in parts], dim=2))


def _by_row(session: Session, out: torch.Tensor) -> torch.Tensor:
    """[b * h, g, t, e] as [b, H, t, e]."""
    return out.unflatten(0, (session.rows, -1)).flatten(1, 2)
