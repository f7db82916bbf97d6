"""How the queries of one step read: the prompt through its prefill pattern, new tokens through their selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, cast

import torch
from torch.nn.functional import pad

from headwise.attention import attend, attend_pages, reads_in_place
from headwise.attention.byproducts import column_mass
from headwise.attention.view import View
from headwise.cache import extras
from headwise.engine import chosen
from headwise.engine.group import Group, Step
from headwise.engine.ledger import Ledger
from headwise.engine.memory import Memories
from headwise.engine.steered import Call, steer
from headwise.errors import HeadwiseError
from headwise.forms import Attended, Causal, Composite, Full, Scoring, Sinks, Tokens, Tree, Weighted, Where, join, near
from headwise.plan import Plan
from headwise.shapes import Mark, Rope


@dataclass(frozen=True)
class Reading:
    """What every read of one layer in one step shares. scoring: of keys, as parts of attention are read. sinks: by KV
    head, what joins the parts once they were added up. window: keys a query sees at most, in a sliding layer or, where
    `chunked`, in its chunk; or None. aside: whether the step's tokens are read beside what is stored, and not stored
    themselves. tree: how the step's tokens follow each other, where they are drafted and no chain. across: whether the
    step's tokens are of another sequence than what is stored (cross-attention), of which each of them sees all."""

    step: Step
    scoring: Scoring
    window: int | None
    seed: int
    rope: Rope | None
    ledger: Ledger
    plan: Plan
    memories: Memories
    marks: tuple[Mark, ...] = ()
    sinks: Sinks | None = None
    chunked: bool = False
    aside: bool = False
    tree: Tree | None = None
    across: bool = False

    @property
    def sees(self) -> Where:
        """What the queries of a step see of what is stored."""
        return Full() if self.across else Causal()

    def weighing(self, heads: Sequence[int]) -> Scoring:
        """How these KV heads weigh what they read, their sinks included."""
        return self.scoring if self.sinks is None else replace(self.scoring, sinks=self.sinks.of(heads))

    def whole(self, keys: Attended, heads: Sequence[int]) -> Attended:
        """What these KV heads of every row read, out [rows * heads, g, t, e], once the sinks have joined all of it."""
        return keys if self.sinks is None else self.sinks.of([*heads] * (len(keys.lse) // len(heads))).join(keys)

    def view(self, group: Group, run: range, part: Any, q: torch.Tensor, **known: torch.Tensor) -> View:
        """What `part` asked to see of a run of lanes of one row; `known`: keys and values where they are at hand."""
        row, store = group.row_of(run[0]), group.store
        first, last = run[0], run[-1] + 1
        seen = self.step.seen[row]
        heads = group.heads if len(run) == len(group.heads) else (*[group.heads[i % len(group.heads)] for i in run],)
        sources = {
            "keys": lambda: known["keys"] if known else store.keys(first, last),
            "values": lambda: known["values"] if known else store.values(first, last),
            "queries": lambda: q,
            "query_positions": lambda: torch.arange(seen - q.shape[2], seen, device=q.device),
            "mass": lambda: extras.mass(store, first, last),
            "notes": lambda: store.extras("notes", first, last),
            "levels": lambda: store.levels(first, last),
            "rope": lambda: self.rope,
            "marks": lambda: tuple(mark for mark in self.marks if mark.row == row),
            "memory": lambda: self.memories.shown(row, seen, group.layer, heads),
            "calibration": lambda: {
                name: one.to(q.device) for name, one in self.plan.calibrated(part.name, group.layer, heads).items()
            },
        }
        needs = part.view_needs
        if "queries" in needs:
            needs = needs | {"query_positions"}
        positions = store.positions_of(first, last)
        if self.aside:
            needs = needs - {"mass", "notes", "levels"}  # which tokens have that are stored
            own = torch.arange(seen - q.shape[2], seen, device=positions.device, dtype=positions.dtype)
            positions = torch.cat((positions, own.expand(len(run), -1)), dim=1)
        return View(
            layer=group.layer,
            heads=heads,
            phase=self.step.phase,
            seen=seen,
            scoring=self.weighing(heads),
            seed=self.seed,
            positions=positions,
            granted={name: sources[name]() for name in needs & sources.keys()},
        )


def read(reading: Reading, group: Group, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
    """Attention (out [lanes, g, t, e]) of new tokens that the store already holds: q [lanes, g, t, d], k [lanes, t, d],
    v [lanes, t, e]. Lanes are read together where they hold equally many tokens. Rows of padding give 0. Queries may be
    of the last of the new tokens alone."""
    return reading.whole(_read_lanes(reading, group, q, k, v), group.heads)


def _read_lanes(reading: Reading, group: Group, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Attended:
    """The same before sinks have joined what was read."""
    step = reading.step
    by_row = step.padded or group.looks(step.phase) or reading.chunked  # whose rows may begin chunks at other steps
    together = step.phase == "decode" and reading.tree is None and not by_row and group.store.ragged
    runs = [range(len(group.store.lengths))] if together else group.runs(by_row)
    if len(runs) == 1 and not step.padded:
        return _read_run(reading, group, runs[0], q, k, v)
    all_lanes = Attended.empty(q, v.shape[-1])
    for run in runs:
        live, lanes = step.live[group.row_of(run[0])], slice(run[0], run[-1] + 1)
        if live:
            new, asked = slice(step.tokens - live, step.tokens), slice(max(0, q.shape[2] - live), q.shape[2])
            own = _read_run(reading, group, run, q[lanes, :, asked], k[lanes, new], v[lanes, new])
            all_lanes.out[lanes, :, asked], all_lanes.lse[lanes, :, asked] = own.out, own.lse
    return all_lanes


def _read_run(
    reading: Reading, group: Group, run: range, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Attended:
    """What a run of lanes holds, as the phase reads it, and the mean of what was evicted of it where there is one."""
    if group.repositions and _repositions(reading, group, run, q.shape[2]):
        attended = _repositioned_run(reading, group, run, q, k, v)
    elif reading.tree is not None:
        attended = _tree_run(reading, group, run, q, reading.tree)
    else:
        read_run = _prefill_run if reading.step.phase == "prefill" else _decode_run
        attended, where = read_run(reading, group, run, q, k, v)
        if group.recipe.steer is not None and not reading.aside:  # what is read again is judged as the model has it
            attended = steer(reading, group, run, _call(reading, group, run, (q, k, v), where), attended)
    if group.evicted_mean is not None:
        attended += group.evicted_mean.attended(q, slice(run[0], run[-1] + 1), reading.scoring)
    return attended


def _call(
    reading: Reading, group: Group, run: range, new: tuple[torch.Tensor, torch.Tensor, torch.Tensor], where: Where
) -> Call:
    """How a run of lanes read its new queries, keys and values, for a steering method to go over it."""
    q, k, v = new
    shown = cache(partial(_shown, reading, group, run, k, v))

    def held(tokens: Tokens) -> Attended:
        """As they lie, but a prompt's own as they came."""
        if reading.step.phase == "decode":
            return _held(reading, group, run, q, tokens)
        return attend(q, *shown(), tokens, reading.scoring)

    return Call(q, where, shown, held)


def _repositions(reading: Reading, group: Group, run: range, tokens: int) -> bool:
    """Whether a run of lanes reads at positions of its own: not where all is there and read, as these are the same."""
    if reading.window is not None:
        return False
    stored = group.store.lengths[run[0]]
    gone = stored < reading.step.seen[group.row_of(run[0])]
    return gone or bool(group.recipe.select.pays(stored - tokens))


def _repositioned_run(
    reading: Reading, group: Group, run: range, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Attended:
    """New tokens, of a prompt too, over themselves and what is selected of their past, all re-rotated to positions
    inside the trained ones. Keys stay stored as they were rotated."""
    tokens = q.shape[2]
    seen, before = reading.step.seen[group.row_of(run[0])], group.store.lengths[run[0]] - tokens
    part = group.recipe.select.beside(tokens)
    view = reading.view(group, run, part, q)
    shown: list[torch.Tensor | None] = [None] * len(run)  # by head, what of the kept each query reads: a bias [g, t, m]
    if group.recipe.select.pays(before):
        selected = _selected(reading, group, run, view, part, k)
        tokens_of = cast(Tokens, selected.tokens if isinstance(selected, Weighted) else selected)
        kept = [entries[entries < before] for entries in tokens_of.indices]
        if isinstance(selected, Weighted):
            shown = [bias[..., : len(own)] for bias, own in zip(selected.bias, kept, strict=True)]
    else:
        kept = [torch.arange(before, device=q.device)] * len(run)
    held = group.store.segment(run[0], run[-1] + 1, before)
    own = torch.arange(seen - tokens, seen, device=q.device)
    pieces = []
    for head, (entries, places) in enumerate(zip(kept, part.places(view, kept), strict=True)):
        first = int(places.max()) + 1 if len(places) else 0
        now = torch.arange(first, first + tokens, device=q.device)
        old = _moved(reading.rope, held.keys[head, entries], held.positions[head, entries], places)
        keys = torch.cat((old, _moved(reading.rope, k[head], own, now)))
        values = torch.cat((held.values[head, entries], v[head]))
        where: Where = Causal()
        if (bias := shown[head]) is not None:
            every = torch.arange(len(keys), device=q.device)[None]
            where = Weighted(Tokens(every), (pad(bias, (0, tokens)),))
        pieces.append(
            attend(_moved(reading.rope, q[head], own, now)[None], keys[None], values[None], where, reading.scoring)
        )
    return Attended(torch.cat([one.out for one in pieces]), torch.cat([one.lse for one in pieces]))


def _moved(rope: Rope | None, x: torch.Tensor, positions: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Keys or queries [..., n, d] at other positions; as they are in a layer that rotates nothing."""
    return x if rope is None else rope.move(x, positions, places)


def _prefill_run(
    reading: Reading, group: Group, run: range, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[Attended, Where]:
    """A chunk of prompt, and what of all that there is it saw. Without a pattern, what was stored before the chunk is
    read unmasked and added to the chunk's own causal part; the chunk itself is read as it came, not as its codec stores
    it. Where that is the same and lies where a kernel reads it, all is read at once."""
    before = group.store.lengths[run[0]] - (0 if reading.aside else k.shape[1])
    pattern = group.recipe.prefill
    if pattern is None and reading.window is None:
        learns = torch.is_grad_enabled() and any(one.requires_grad for one in (q, k, v))
        if before > 0 and group.verbatim and not reading.aside and not learns:
            paged = group.store.paged(run[0], run[-1] + 1)
            if reads_in_place(q, paged, Causal(), reading.scoring):
                return attend_pages(q, paged, Causal(), reading.scoring), Causal()
        own = attend(q, k, v, Causal(), reading.scoring)
        if before:
            own += _held(reading, group, run, q, Full(), before)
        return own, Causal()
    keys, values = _shown(reading, group, run, k, v)
    if reading.window is not None:
        seen = reading.step.seen[group.row_of(run[0])]
        where = near(reading.window, reading.chunked, seen, q.shape[2], keys.shape[1])
    else:
        where = pattern.where(reading.view(group, run, pattern, q, keys=keys, values=values))
        chosen.tell(where, q.shape[2], keys.shape[1], q.shape[0] * q.shape[1])
    return attend(q, keys, values, where, reading.scoring), where


def _shown(
    reading: Reading, group: Group, run: range, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All keys and values of a run of lanes as tensors: what is stored, and a chunk of prompt as it came."""
    lanes, stored = (run[0], run[-1] + 1), group.store.lengths[run[0]]
    if reading.step.phase == "decode":
        held = group.store.segment(*lanes)
        return held.keys, held.values
    before = stored - (0 if reading.aside else k.shape[1])
    if not before:
        return k, v
    past = group.store.segment(*lanes, before)
    return torch.cat((past.keys, k), dim=1), torch.cat((past.values, v), dim=1)


def _decode_run(
    reading: Reading, group: Group, run: range, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[Attended, Where]:
    """A few new tokens over everything stored, or what the recipe selects of it; and what they saw."""
    where: Where = Full() if q.shape[2] == 1 else reading.sees
    if reading.window is not None:
        seen, stored = reading.step.seen[group.row_of(run[0])], group.store.lengths[run[0]]
        where = near(reading.window, reading.chunked, seen, q.shape[2], stored)
        if isinstance(where, Composite):  # of a draft that meets a chunk's edge; its pieces are of tensors
            held = group.store.segment(run[0], run[-1] + 1)
            return attend(q, held.keys, held.values, where, reading.scoring), where
    elif (part := group.recipe.select) is not None:
        if part.repositions or not part.pays(group.store.lengths[run[0]]):
            reading.ledger.stepped_aside[part.name] += 1
        else:
            where = _selected(reading, group, run, reading.view(group, run, part, q), part, k)
            chosen.tell(where, q.shape[2], group.store.lengths[run[0]], q.shape[0] * q.shape[1])
    return _held(reading, group, run, q, where), where


def _tree_run(reading: Reading, group: Group, run: range, q: torch.Tensor, tree: Tree) -> Attended:
    """A tree of drafted tokens: all that is stored before it at once, and its own nodes as the store gives them back,
    each over those that it follows."""
    store, lanes = group.store, (run[0], run[-1] + 1)
    if reading.window is not None:  # it moves with every node; there is little to read
        held = store.segment(*lanes)
        return attend(q, held.keys, held.values, Tree(tree.parents, reading.window - 1), reading.scoring)
    before = store.lengths[run[0]] - q.shape[2]
    nodes = attend(q, store.keys(*lanes, before), store.values(*lanes, before), tree, reading.scoring)
    return nodes + _held(reading, group, run, q, Full(), before)


def _held(
    reading: Reading, group: Group, run: range, q: torch.Tensor, where: Where, stop: int | None = None
) -> Attended:
    """Attention over what a run of lanes holds, before entry `stop` where given, in the pieces that the store gives."""
    if group.reader is not None and stop is None and len(run) == len(group.store.lengths):
        attended = group.reader.read_some(reading, q, where)
        if attended is not None:
            return attended
    pieces = group.store.pieces(run[0], run[-1] + 1, where, q.shape[2], stop)
    return _gathered([(lanes, attend_pages(q[lanes], paged, form, reading.scoring)) for lanes, paged, form in pieces])


def _gathered(pieces: list[tuple[slice, Attended]]) -> Attended:
    """Pieces of the same lanes added, those of other lanes set side by side."""
    if len(pieces) == 1:
        return pieces[0][1]
    by_lanes: dict[int, list[Attended]] = {}
    for lanes, piece in pieces:
        by_lanes.setdefault(lanes.start, []).append(piece)
    joined = [join(own) for _, own in sorted(by_lanes.items())]
    if len(joined) == 1:
        return joined[0]
    return Attended(torch.cat([one.out for one in joined]), torch.cat([one.lse for one in joined]))


def _selected(reading: Reading, group: Group, run: range, view: View, part: Any, k: torch.Tensor) -> Where:
    """What `part` selects. It notes first, then summarises the new keys k by its notes, then selects by both."""
    if torch.isnan(k).any():  # it would reach a block's summary only steps later
        raise HeadwiseError(f"layer {group.layer}: a new key is NaN; see what the model's layer was given")
    row = group.row_of(run[0])
    needs = part.view_needs
    if "memory" in needs:
        reading.memories.write(row, view, part.remember(view))
        granted = {**view.granted, "memory": reading.memories.shown(row, view.seen, view.layer, view.heads)}
        view = replace(view, granted=granted)
    if "summaries" in needs:
        made = group.store.summaries.of(
            group.store, run[0], run[-1] + 1, part.summary_size, partial(part.summarise, view)
        )
        view = replace(view, granted={**view.granted, "summaries": made})
    where: Where = part.select(view)
    return where


def learn(reading: Reading, group: Group, q: torch.Tensor) -> None:
    """Show a chunk of prompt that is stored, queries [lanes, g, t, d], to a selection that notes something of it."""
    step = reading.step
    if step.phase != "prefill" or reading.window is not None:
        return
    for run in group.runs(by_row=True):
        row = group.row_of(run[0])
        if live := step.live[row]:
            view = reading.view(group, run, group.recipe.select, q[run[0] : run[-1] + 1, :, step.tokens - live :])
            reading.memories.write(row, view, group.recipe.select.learn(view))


def count_mass(reading: Reading, group: Group) -> None:
    """Add the attention mass that the uncounted queries gave each stored token (H2O's accumulated score)."""
    for run in group.runs(by_row=True):
        row = group.row_of(run[0])
        first = run[0] - group.lanes(row).start
        own = slice(first, first + len(run))
        queries, lse = group.uncounted[row].all[own], group.lses[row].all[own] if row in group.lses else None
        if queries.shape[2]:
            keys = group.store.keys(run[0], run[-1] + 1)
            heads = group.heads[first : first + len(run)]
            mass = column_mass(queries, keys, reading.sees, reading.weighing(heads), lse=lse)
            for lane, received in zip(run, mass, strict=True):
                extras.add_mass(group.store, lane, received)
    group.uncounted.clear()
    group.lses.clear()
