"""What a request will hold at most, told before anything of it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from headwise.cache.pages import PAGE
from headwise.engine.budget import in_tokens
from headwise.engine.group import DECODE_INTERVAL, Group
from headwise.engine.layers import new_groups
from headwise.engine.recent import ROOM
from headwise.engine.session import Session
from headwise.forms import Scoring, Sinks
from headwise.geometry import LayerGeometry
from headwise.plan import Plan
from headwise.shapes import Rope

SPARE = 16  # a lane that grows gets room for a sixteenth more
TRIED, STEPS = 256, 8  # tokens of the trial that tells what selections note, and decoding steps after them
MOST_PLANS = 256  # whose trial is remembered
NOTED = 1.15  # what notes may grow by over their share in the trial


@dataclass(frozen=True)
class Work:
    """What is read and written of one sequence: a prompt of `prompt` tokens, in pieces of at most `piece`, and `new`
    tokens after it."""

    prompt: int
    new: int
    piece: int

    @property
    def total(self) -> int:
        """All tokens."""
        return self.prompt + self.new


def reads_whole(plan: Plan) -> bool:
    """Whether a method of the plan must see a prompt in one piece."""
    parts = {part for row in plan.recipes for recipe in row for part in recipe.parts}
    return any(part.own_card.chunking == "whole_prompt" for part in parts)


def reads_alike(plan: Plan, gathered: bool) -> bool:
    """Whether a prompt is read alike wherever it is cut: nothing of it is evicted before its end, where it is gathered,
    or rounded, and no method chooses anew at the end of a piece."""
    parts = {part for row in plan.recipes for recipe in row for part in recipe.parts}
    evicts = {recipe.evict for row in plan.recipes for recipe in row if recipe.evict is not None}
    rounds = any(recipe.compress is not None for row in plan.recipes for recipe in row)
    chooses = any(part.own_card.chunking != "exact" for part in parts - evicts)
    return not rounds and not chooses and (gathered or not evicts)


def gathers(plan: Plan) -> bool:
    """Whether a prompt in pieces may be read to its end before the plan evicts of it."""
    return not reads_whole(plan) and any(recipe.evict is not None for row in plan.recipes for recipe in row)


class Promises:
    """Promises of sequences in `dtype`. ropes: by layer, how keys are rotated, for selections that undo it."""

    def __init__(self, dtype: torch.dtype, ropes: Sequence[Rope | None] | None = None) -> None:
        self.dtype, self.ropes = dtype, ropes
        self._noted: dict[str, int] = {}  # by digest of a plan, what its selections noted in the trial

    def bytes_of(self, plan: Plan, work: Work) -> int:
        """Most bytes of keys, values, positions and notes that a sequence holds between two steps. Not in it:
        activations, and what is held within a step to take it back."""
        counted = in_tokens(plan, self.dtype)
        bare = (None,) * len(plan.geometry.layers)  # what lies turned takes as much as what does not
        layers, _ = new_groups(counted, 1, self.dtype, torch.device("cpu"), bare, None)
        held = sum(_group_bytes(counted, group, work, self.dtype) for layer in layers for group in layer)
        return held + round(NOTED * self._tried(plan) * max(1.0, work.total / TRIED))

    def _tried(self, plan: Plan) -> int:
        """Bytes that the selections of a plan note of TRIED tokens, all of them stored."""
        if all(one.select is None for row in plan.recipes for one in row):
            return 0
        if plan.digest not in self._noted:
            if len(self._noted) == MOST_PLANS:
                self._noted.clear()
            self._noted[plan.digest] = self._note(plan)
        return self._noted[plan.digest]

    @torch.no_grad()
    def _note(self, plan: Plan) -> int:
        """A trial on random tokens, read whole, and a few steps after them."""
        left = tuple(tuple(replace(one, prefill=None, evict=None, budget=None) for one in row) for row in plan.recipes)
        session = Session(replace(plan, recipes=left), dtype=self.dtype, ropes=self.ropes)
        drawn, most = torch.Generator().manual_seed(0), 0
        for tokens in (min(TRIED, plan.geometry.max_positions - STEPS), *[1] * STEPS):
            session.begin(tokens, "decode" if session.passed else "prefill", undo=False)
            for layer, own in enumerate(plan.geometry.layers):
                sizes = (own.query_heads, own.key_width), (own.kv_heads, own.key_width), (own.kv_heads, own.value_width)
                q, k, v = (torch.randn(1, h, tokens, d, generator=drawn).to(self.dtype) for h, d in sizes)
                session.step(layer, q, k, v, Scoring(own.key_width**-0.5, sinks=_sinks(own)))
            most = max(most, session.memories.nbytes + sum(one.store.summaries.nbytes for one in session.groups))
        return most


def _sinks(layer: LayerGeometry) -> Sinks | None:
    """Sinks for a trial, where a layer has some."""
    return Sinks(torch.zeros(layer.kv_heads, layer.query_heads // layer.kv_heads)) if layer.sinks else None


def _group_bytes(plan: Plan, group: Group, work: Work, dtype: torch.dtype) -> int:
    """Of the heads of one layer that follow one recipe, without what a selection notes."""
    shape, evict = plan.geometry.layers[group.layer], group.recipe.evict
    between = max(min(work.piece, work.prompt), DECODE_INTERVAL)  # tokens that come between two evictions
    if shape.window is not None:
        held = min(work.total, shape.window + between)
    elif evict is None:
        held = work.total
    else:
        held = min(work.total, plan.count(group.recipe, group.layer, work.total) + between)
        held = max(held, work.prompt) if evict.rehearsal is not None else held
    new = min(held, between)
    group.planned, group.since = [held - new], [new + max(PAGE, held // SPARE)]
    looked_at = max(group.last_queries, DECODE_INTERVAL if group.counts_mass else 0)
    looked_at = min(looked_at, work.total) + ROOM if looked_at else 0
    queries = len(group.heads) * shape.group * looked_at * (shape.key_width * dtype.itemsize + 4)
    return group.predicted_bytes() + queries
