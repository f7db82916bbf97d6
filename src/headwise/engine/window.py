"""A window of tokens behind what a session holds, which sees all of it and of its own tokens those that it is told to.

Nothing of it is stored: a masked-diffusion model looks at the same window again and again, until its tokens are known.
What is held is read out decoded, so that this serves every kind of store.
"""

from __future__ import annotations

import torch

from headwise.engine.aside import refuse_aside, runs_of
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Attended, Scoring
from headwise.plan import Plan


def refuse_window(plan: Plan) -> None:
    """Refuse plans and models behind whose cache a window cannot look at all that is held."""
    refuse_aside(plan)
    for number, layer in enumerate(plan.geometry.layers):
        if layer.window is not None:
            raise SessionError(
                f"layer {number} sees {layer.window} tokens at a time, and a window of masked tokens sees all; use a "
                "model whose layers all see everything"
            )


def read_window(
    session: Session,
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scoring: Scoring,
    sight: torch.Tensor,
) -> torch.Tensor:
    """Attention of a window's tokens, q [b, H, t, d], over all that is stored and k [b, h, t, d], v [b, h, t, e] of
    their own: [b, H, t, e]. sight: bool [t, t], which of the window's tokens each of them sees, itself always."""
    group_size = q.shape[1] // k.shape[1]
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for run in runs_of(session, layer):
        heads, row = list(run.heads), run.row
        own_q = q[row].unflatten(0, (-1, group_size))[heads].float()
        keys = torch.cat((run.segment.keys.float(), k[row, heads].float()), dim=1)
        values = torch.cat((run.segment.values.float(), v[row, heads].float()), dim=1)
        scores = scoring.capped(own_q @ keys[:, None].mT * scoring.scale)  # [heads, g, t, n + t]
        scores[..., -len(sight) :] = scores[..., -len(sight) :].masked_fill(~sight, -torch.inf)
        lse = scores.logsumexp(-1)
        read = Attended((scores - lse[..., None]).exp() @ values[:, None], lse)
        if (mean := run.group.evicted_mean) is not None:
            read = read + mean.attended(own_q, run.lanes, scoring.of_keys)
        read = scoring.of(heads).joined(read)
        out[row].unflatten(0, (-1, group_size))[heads] = read.out.to(out.dtype)
    return out
