"""What a steering method changes of a read: named heads are read anew, or raised keys are read once more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headwise.attention import attend
from headwise.errors import SessionError
from headwise.forms import Attended, Causal, Edit, Full, Narrowed, Raised, Rule, Tokens, Where
from headwise.plan import Plan
from headwise.shapes import Mark

if TYPE_CHECKING:
    from headwise.engine.group import Group
    from headwise.engine.read import Reading


@dataclass(frozen=True)
class Call:
    """A read of a run of lanes of one row: queries [h, g, t, d] and what they saw, `where`, of all that there is.

    shown: all keys [h, n, d] and values [h, n, e], as tensors. held: attention of all these queries to chosen tokens,
    read where they lie.
    """

    q: Tensor
    where: Where
    shown: Callable[[], tuple[Tensor, Tensor]]
    held: Callable[[Tokens], Attended]


def steer(reading: Reading, group: Group, run: range, call: Call, read: Attended) -> Attended:
    """What was `read`, with the heads and queries that the recipe's steering method names as it has them; the same
    tensors where it changes nothing."""
    part = group.recipe.steer
    first = _first(reading, group, run, call.q.shape[2]) if part.last_only else 0
    if first == call.q.shape[2]:
        return read
    edit = _edit(reading, group, run, part, call)
    if edit is None:
        return read
    own = Attended(read.out[:, :, first:], read.lse[:, :, first:])
    if isinstance(edit, Raised):
        steered = _raised(reading, call, first, own, edit)
    else:
        steered = _anew(reading, replace(call, q=call.q[:, :, first:], where=_late(call.where, first)), own, edit)
    if not first:
        return steered
    out, lse = torch.cat((read.out[:, :, :first], steered.out), 2), torch.cat((read.lse[:, :, :first], steered.lse), 2)
    return Attended(out, lse)


def _first(reading: Reading, group: Group, run: range, tokens: int) -> int:
    """The first query that is steered where a prompt's last one alone is: of later tokens, all are."""
    if reading.step.phase == "decode":
        return 0
    row = group.row_of(run[0])
    return min(tokens, max(0, reading.step.total[row] - 1 - (reading.step.seen[row] - tokens)))


def _edit(reading: Reading, group: Group, run: range, part: Any, call: Call) -> Edit | None:
    """What the method changes; it notes first what it found in a prompt's piece."""
    known = dict(zip(("keys", "values"), call.shown(), strict=True)) if "keys" in part.view_needs else {}
    view = reading.view(group, run, part, call.q, **known)
    if "memory" in part.view_needs and reading.step.phase == "prefill":
        row = group.row_of(run[0])
        reading.memories.write(row, view, part.remember(view, call.where))
        shown = reading.memories.shown(row, view.seen, view.layer, view.heads)
        view = replace(view, granted={**view.granted, "memory": shown})
    edit: Edit | None = part.edit(view, call.q.shape[1])
    return edit


def _late(where: Where, first: int) -> Where:
    """What `where` shows to its queries from the `first` on; one rule for all shows it as it is."""
    return where if not first or isinstance(where.lowered, Rule) else Narrowed(where, first)


def _anew(reading: Reading, call: Call, read: Attended, edit: Edit) -> Attended:
    """The steered heads by their edited scores, in full rows; the others as they were read."""
    places = edit.heads.any(1).nonzero()[:, 0]
    if call.where.heads is not None:  # lists are of all heads
        places = torch.arange(len(edit.heads), device=places.device)
    edit = edit.of(places.tolist())
    scoring = replace(reading.scoring, edit=edit)
    keys, values = call.shown()
    found = attend(call.q[places], keys[places], values[places], call.where, scoring)
    return _put(read, places, edit.heads, found)


def _raised(reading: Reading, call: Call, first: int, read: Attended, edit: Raised) -> Attended:
    """What was `read` by the queries from the `first` on, and the raised keys once more, which then count exp(by) times
    in all."""
    where = _among(call.where, edit.keys)
    again = call.held(where) if isinstance(where, Tokens) else attend(call.q, *call.shown(), where, reading.scoring)
    times = edit.by + math.log(-math.expm1(-edit.by))  # log(exp(by) - 1), of any size
    more = read + Attended(again.out[:, :, first:], again.lse[:, :, first:] + times)
    heads = edit.heads & edit.keys.any(1, keepdim=True)
    return _put(read, torch.arange(len(heads), device=heads.device), heads, more)


def _among(where: Where, keys: Tensor) -> Where:
    """What `where` shows of the keys of a mask [h, n], in a form that kernels know where there is one."""
    if isinstance(where, Causal | Full):
        return Tokens([own.nonzero()[:, 0] for own in keys])
    if isinstance(where, Tokens):
        return Tokens([index[own[index]] for index, own in zip(where.indices, keys, strict=True)])
    return Narrowed(where, 0, keys)


def _put(read: Attended, places: Tensor, heads: Tensor, found: Attended) -> Attended:
    """What was read, with `found` in the place of the query heads `heads [m, g]` of the KV heads at `places [m]`."""
    out, lse = read.out.clone(), read.lse.clone()
    out[places] = torch.where(heads[:, :, None, None], found.out, out[places])
    lse[places] = torch.where(heads[:, :, None], found.lse.to(lse), lse[places])
    return Attended(out, lse)


def refuse_marks(plan: Plan, marks: Sequence[Mark], totals: Sequence[int]) -> None:
    """Refuse marks that a recipe steers and that end beyond their prompts, of so many tokens by row."""
    kinds = {kind: part.name for part in steering(plan) for kind in part.kinds}
    for mark in marks:
        if mark.kind in kinds and mark.end > totals[mark.row]:
            raise SessionError(
                f"{mark} ends beyond the {totals[mark.row]} tokens of its prompt, which '{kinds[mark.kind]}' steers by "
                "it; marks count tokens, without padding: `Mark.of_text` finds them by characters. Of a prompt in "
                "pieces tell the length first: `with cache.prompt(tokens)`"
            )


def refuse_unmarked(plan: Plan, marks: Sequence[Mark], found: Sequence[str] = ()) -> None:
    """Refuse a plan that steers marks of kinds of which there are none: it would silently do nothing. found: kinds that
    are found by themselves when the prompt is read."""
    for part in steering(plan):
        if part.kinds and not {*found, *(mark.kind for mark in marks)} & {*part.kinds}:
            kind = part.kinds[0]
            raise SessionError(
                f"'{part.name}' steers what is marked as '{kind}', but nothing is; give the cache marks="
                f"[Mark('{kind}', first, end)], or --mark '{kind}: words of the prompt' on the command line"
            )


def steering(plan: Plan) -> list[Any]:
    """The steering methods of a plan that are not neutral, each once."""
    parts = {recipe.steer for row in plan.recipes for recipe in row if recipe.steer is not None}
    return [part for part in parts if not part.neutral]
