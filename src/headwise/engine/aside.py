"""What newest tokens read beside a session, which is left as it is: over other tokens, or with what each of them got.

The newest token of every row is taken as not stored yet: what is read are the stored tokens before it, and itself.
What is held is read out decoded, so that this serves every kind of store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from headwise.cache.kv_store import Segment
from headwise.engine.group import Group
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Attended, Scoring
from headwise.plan import Plan


def refuse_aside(plan: Plan) -> None:
    """Refuse plans beside which nothing can be read: where a step reads a selection, what would be read here is
    another thing than it read; and states cannot be gone back from."""
    selecting = [str(recipe) for row in plan.recipes for recipe in row if recipe.select is not None]
    if selecting:
        raise SessionError(
            f"the recipe '{selecting[0]}' reads a selection of the cache at every step, and a second look would read "
            "all of it, so that the two differ by more than is meant; leave the select part out"
        )
    if steered := [str(recipe) for row in plan.recipes for recipe in row if recipe.steer is not None]:
        raise SessionError(
            f"the recipe '{steered[0]}' steers what is read, and a second look would read it as it is, so that the two "
            "differ by more than is meant; leave the steer part out"
        )
    if any(plan.geometry.states):
        raise SessionError(
            "the model has layers that pass on a state, which holds the newest token already; a second look at it "
            "cannot be had, use a model whose layers all attend"
        )


def read_aside(
    session: Session,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scoring: Scoring,
    raised: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the newest token of every row, q [b, H, 1, d], over itself, k [b, h, 1, d] and v [b, h, 1, e], and
    what is stored of the tokens before it: [b, H, 1, e].

    raised: float32 [b, H or 1, passed], what is added to the scores of true positions; at -inf they get no attention.
    The newest token itself always gets some.
    """
    group_size = q.shape[1] // k.shape[1]

    def changed(run: Run, scores: torch.Tensor) -> None:
        if raised is not None:
            every = raised[run.row].expand(q.shape[1], -1).unflatten(0, (-1, group_size))
            added = every[list(run.heads)].to(scores.device)
            places = run.segment.positions.long()[:, None].expand(-1, group_size, -1)
            scores[..., :-1] += added.gather(-1, places)[:, :, None]
        scores[..., :-1].masked_fill_(~run.seen(session, layer)[:, None, None], -torch.inf)

    return read_beside(session, layer, q, k, v, scoring, changed)


def read_beside(
    session: Session,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scoring: Scoring,
    change: Callable[[Run, torch.Tensor], None],
) -> torch.Tensor:
    """Attention of tokens that are not stored, q [b, H, t, d], over all that is, and behind it k [b, h, t, d] and v [b,
    h, t, e] of their own: [b, H, t, e]. change: what is done to the scores [heads, g, t, n + t] of some lanes, in
    place."""
    group_size = q.shape[1] // k.shape[1]
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for run in runs_of(session, layer):
        heads, row = list(run.heads), run.row
        own_q = q[row].unflatten(0, (-1, group_size))[heads].float()
        keys = torch.cat((run.segment.keys.float(), k[row, heads].float()), dim=1)
        values = torch.cat((run.segment.values.float(), v[row, heads].float()), dim=1)
        scores = scoring.capped(own_q @ keys[:, None].mT * scoring.scale)
        change(run, scores)
        lse = scores.logsumexp(-1)
        read = Attended((scores - lse[..., None]).exp() @ values[:, None], lse)
        if (mean := run.group.evicted_mean) is not None:
            read = read + mean.attended(own_q, run.lanes, scoring.of_keys)
        read = scoring.of(heads).joined(read)
        out[row].unflatten(0, (-1, group_size))[heads] = read.out.to(out.dtype)
    return out


def attention_aside(session: Session, layer: int, q: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """The probability that the newest token of every row, q [b, H, 1, d], gives to each token that is stored, itself
    included: float32 [b, H, passed] by true position, 0 for tokens that are not held. Rows sum to 1, less what a sink
    or an evicted mean gets."""
    kv_heads = session.plan.geometry.layers[layer].kv_heads
    found = torch.zeros(session.rows, kv_heads, q.shape[1] // kv_heads, session.passed, device=q.device)
    for run in runs_of(session, layer):
        heads, own = list(run.heads), q[run.row].unflatten(0, (kv_heads, -1))[list(run.heads)].float()
        scores = scoring.capped(own @ run.segment.keys.float()[:, None].mT * scoring.scale)[:, :, 0]
        seen = run.seen(session, layer) | (run.segment.positions == session.seen[run.row] - 1)
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
        lse = scores.logsumexp(-1, keepdim=True)
        if (mean := run.group.evicted_mean) is not None:
            lse = torch.logaddexp(lse, mean.attended(own, run.lanes, scoring.of_keys).lse)
        lse = scoring.of(heads).joint(lse)
        places = run.segment.positions.long()[:, None].expand_as(scores)
        found[run.row, heads] = found[run.row, heads].scatter(-1, places, (scores - lse).exp())
    return found.flatten(1, 2)


@dataclass(frozen=True)
class Run:
    """Lanes of one batch row that hold equally many tokens, read out."""

    group: Group
    row: int
    lanes: slice
    heads: tuple[int, ...]
    segment: Segment

    def seen(self, session: Session, layer: int) -> torch.Tensor:
        """Which stored tokens [heads, n] the newest one sees, itself not among them."""
        own, newest = session.plan.geometry.layers[layer], session.seen[self.row] - 1
        positions = self.segment.positions
        first = 0
        if own.window is not None:
            first = newest // own.window * own.window if own.chunked else newest - own.window + 1
        return (positions < newest) & (positions >= first)


def runs_of(session: Session, layer: int) -> Iterator[Run]:
    """What a layer holds, run by run."""
    for group in session.layers[layer]:
        for run in group.runs(by_row=True):
            first, last = run[0], run[-1] + 1
            heads = tuple(group.heads[lane % len(group.heads)] for lane in run)
            segment = group.store.segment(first, last)
            yield Run(group, group.row_of(first), slice(first, last), heads, segment)
