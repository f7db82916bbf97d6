"""What the laws of steering share: a text whose weights can be read off its outputs, and slow truths."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch

from headwise.attention.view import Memory, View
from headwise.engine.session import Session
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import methods
from headwise.shapes import Mark
from tests.contract.drive import Text, decode, prefill, scoring

PROMPT, STEPS = 40, 4
TOKENS = PROMPT + STEPS
SHAPE = Geometry.uniform(4, 2, 16, TOKENS, (None, 32), 4096)  # values as wide as there are tokens
HEADS = "0.1 0.2 1.0"  # of four in each of two layers
# Values at which a method has something to do on random text.
SMALL = {"threshold": 0.04, "alpha": 0.3, "beta": 0.2, "least": 0.02, "rho": 0.9}


def method(name: str, **knobs: Any) -> Any:
    """The steering method called `name`, at knobs that make it do something on a random text."""
    cls = methods("steer")[name]
    own = {field.name for field in fields(cls)}
    return cls(**{knob: value for knob, value in (SMALL | knobs).items() if knob in own})


def marks_of(part: Any, row: int = 0) -> list[Mark]:
    """Two marks of each kind that a method steers."""
    spans = [(5, 9), (14, 16)]
    return [Mark(kind, a + i, b + i, row) for i, kind in enumerate(part.kinds) for a, b in spans]


def telling(text: Text) -> Text:
    """The text with values that are all 0 but at their own place: what attention puts out are its weights."""
    alike = torch.eye(text.v.shape[3], dtype=text.v.dtype).expand(text.v.shape)
    return replace(text, v=alike)


def texts(rows: int = 1, seed: int = 0) -> Text:
    """A telling text."""
    return telling(Text.random(SHAPE, TOKENS, rows, seed))


def steered(part: Any, text: Text, *, beside: str = "", chunks: tuple[int, ...] = (PROMPT,), **how: Any) -> Any:
    """The session of a text under a method, with what it put out [L, b, H, T, e]; part None: without steering."""
    recipe = replace(Recipe.parse(beside), steer=part)
    marks = how.pop("marks", marks_of(part) if part is not None else ())
    session = Session(Plan.uniform(SHAPE, recipe), rows=text.q.shape[1], marks=marks, **how)
    outs, done = prefill(session, text, chunks), sum(chunks)
    if steps := text.q.shape[3] - done:
        outs = torch.cat((outs, decode(session, text, done, steps)), dim=3)
    return session, outs


def view_of(session: Session, layer: int, head: int, positions: torch.Tensor) -> View:
    """What the slow truth of a method may look at."""
    notes = {
        (one.layer, one.heads[0], name): session.memories.shown(0, session.seen[0], layer, (head,)).recall(name)
        for one in [Memory({}, layer, (head,))]
        for name in ("hidden", "whose")
    }
    known = {place: found[0] for place, found in notes.items() if found is not None}
    granted = {"marks": session.marks, "memory": Memory(known, layer, (head,))}
    return View(layer, (head,), "decode", session.seen[0], scoring(SHAPE, layer), 0, positions[None], granted)


def scores_of(text: Text, layer: int, head: int, last: int, positions: torch.Tensor) -> torch.Tensor:
    """Scores [t, n] of the queries up to token `last` of a query head on the tokens at `positions`, -inf where one is
    not seen, with the layer's window."""
    own = SHAPE.layers[layer]
    at = torch.arange(last)
    s = text.q[layer, 0, head, :last] @ text.k[layer, 0, head // 2, positions.long()].T * scoring(SHAPE, layer).scale
    hidden = positions[None] > at[:, None]
    if own.window is not None:
        hidden |= positions[None] <= at[:, None] - own.window
    return s.masked_fill(hidden, -torch.inf)


def named(session: Session, part: Any, layer: int, head: int, n: int) -> torch.Tensor:
    """Which of the first n tokens a method steers in a query head: bool [n]."""
    inside = torch.zeros(n, dtype=torch.bool)
    for mark in session.marks:
        inside[mark.start : mark.end] |= mark.kind in part.kinds
    view = view_of(session, layer, head // 2, torch.arange(n))
    if "memory" in part.needs:
        hidden, whose = view.memory.recall("hidden"), view.memory.recall("whose")
        assert hidden is not None and whose is not None
        inside[hidden[0][whose[0][:, head % 2] > 0]] = True
    return inside
