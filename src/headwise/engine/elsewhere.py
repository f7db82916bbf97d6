"""Layers of a step whose attention is known, computed elsewhere, or over what another layer stores."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from headwise.engine.layers import in_order, lanes_of
from headwise.engine.read import read
from headwise.engine.steered import steering
from headwise.errors import SessionError
from headwise.forms import Scoring
from headwise.kernels.dispatch import noting

if TYPE_CHECKING:
    from headwise.engine.session import Session


def absorb(session: Session, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring) -> None:
    """`step` of a whole prompt whose attention is known: stores, scores and evicts as it does, and attends for the
    groups alone that keep the log-sum-exp.

    SessionError for later tokens, as a selection may note what it chose for them to attend to.
    """
    reading = session.turn(layer, scoring)
    for part in steering(session.plan):
        raise SessionError(f"'{part.name}' steers prompts, so a prompt has to be read with it and not absorbed")
    session._open -= session.plan.geometry.readers(layer)  # what they read is known too, and leaves nothing
    if session.passed > reading.step.tokens:
        raise SessionError(
            f"{session.passed - reading.step.tokens} tokens came before those to absorb; absorb a prompt in one piece "
            "into an empty session, and use step() for what follows"
        )
    queries = session.grouped(reading.step, layer, q, k, v)
    with noting(partial(session.ledger.note, reading.step.phase)):
        for group in session.layers[layer]:
            own = lanes_of(group, queries), lanes_of(group, k), lanes_of(group, v)
            session._take_in(reading, group, *own)
            session._after_read(reading, group, own[0], read(reading, group, *own).lse if group.keeps_lse else None)
    session.done(reading.step, layer)


def follow(
    session: Session, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Attention of a layer that reads what an earlier one stores, by that one's recipe: q [b, H, t, d] of the last
    t of the step's tokens, and k and v as that layer was given them -> [b, H, t, e]."""
    reading = session.turn(layer, scoring)
    source = session.plan.geometry.layers[layer].reads
    assert source is not None, "nothing else follows"
    queries = session.grouped(reading.step, source, q, k, v, q.shape[2])
    with noting(partial(session.ledger.note, reading.step.phase)):
        groups = session.layers[source]
        own = [(one, lanes_of(one, queries), lanes_of(one, k), lanes_of(one, v)) for one in groups]
        out = session.read_layer(reading, source, queries, own).out
    session.done(reading.step, layer)
    return out.unflatten(0, (session.rows, -1)).flatten(1, 2)


def hand_back(session: Session, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Store new keys k [b, h, t, d] and values v [b, h, t, e] of a layer that attends elsewhere; all that there
    are, [b, h, n, d] and [b, h, n, e]: those before as they lie, the new ones as they came. SessionError under a
    plan that evicts or learns of queries, which nobody sees here."""
    reading, heads = session.turn(layer, Scoring(1.0)), session.plan.geometry.layers[layer].query_heads
    q = session.grouped(reading.step, layer, k.new_zeros(()).expand(len(k), heads, *k.shape[2:]), k, v)
    groups, parts = session.layers[layer], []
    for group in groups:
        if group.recipe.evict is not None or group.learns or group.store.unfitted:
            raise SessionError(f"'{group.recipe}' looks at queries, which are not seen where a model attends by itself")
        before, lanes = group.store.lengths[0], len(group.store.lengths)
        own = lanes_of(group, q), lanes_of(group, k), lanes_of(group, v)
        keys, values = own[1], own[2]
        if before:
            held = group.store.segment(0, lanes, before)
            keys, values = torch.cat((held.keys, keys), 1), torch.cat((held.values, values), 1)
        parts.append((keys, values))
        session._take_in(reading, group, *own)
        session._after_read(reading, group, own[0], None)
    session.done(reading.step, layer)
    keys, values = (in_order(groups, own).unflatten(0, (session.rows, -1)) for own in zip(*parts, strict=True))
    return keys, values
