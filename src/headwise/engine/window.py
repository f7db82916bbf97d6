"""A window of tokens behind what a session holds, which sees all of it and of its own tokens those that it is told to.

Nothing of it is stored: a masked-diffusion model looks at the same window again and again, until its tokens are known.
What is held is read out decoded, so that this serves every kind of store.
"""

from __future__ import annotations

import torch

from headwise.engine.aside import Run, read_beside, refuse_aside
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Scoring
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

    def changed(run: Run, scores: torch.Tensor) -> None:
        scores[..., -len(sight) :].masked_fill_(~sight, -torch.inf)

    return read_beside(session, layer, q, k, v, scoring, changed)
