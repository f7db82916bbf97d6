"""What is announced of a step, checked before the step begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from headwise.engine.group import Group
from headwise.errors import ContextError, SessionError
from headwise.forms import Scoring
from headwise.geometry import LayerGeometry
from headwise.plan import Plan
from headwise.shapes import want

if TYPE_CHECKING:
    from headwise.engine.session import Session


def live_counts(rows: int, tokens: int, live: torch.Tensor | None) -> tuple[int, ...]:
    """By row, how many of `tokens` new ones are no padding, by a mask `live [b, tokens]`, False for left padding."""
    if live is None:
        return (tokens,) * rows
    want(live, "b t", b=rows, t=tokens)
    counts = live.sum(1)
    from_right = torch.arange(tokens, 0, -1, device=live.device) <= counts[:, None]
    wrong = (from_right != live.bool()).any(1)
    if wrong.any():
        raise SessionError(
            f"row {int(wrong.nonzero()[0, 0])} of the batch has padding after or between its tokens; pad on the "
            "left (tokenizer.padding_side = 'left')"
        )
    return tuple(counts.tolist())


def refuse_length(plan: Plan, groups: Sequence[Group], longest: int, tokens: int, again: int) -> None:
    """Refuse a sequence of `longest` tokens whose last `tokens` come at once, and after which `again` of them are read
    once more, where positions would run out."""
    limit = plan.geometry.max_positions
    if again and longest <= limit < longest + again:
        part = next(group.recipe.evict for group in groups if group.rehearsal is not None)
        raise ContextError(
            f"after a prompt of {longest} tokens '{part.name}' lets the model read {again} of them again, more than "
            f"the {limit} positions it was trained on; give {part.name} a smaller piece=, or a shorter prompt"
        )
    if longest <= limit:
        return
    if plan.longest is not None:
        raise ContextError(
            f"{longest} tokens are more than the {limit} positions the model was trained on; shorten the prompt, "
            "use a model with a longer context, or give every head a selection that places what it reads inside "
            f"them, such as long_heads({max(1, limit // 2)}, positions='compact')"
        )
    selections = (group.recipe.select for group in groups if group.recipe.repositions)
    part = max(selections, key=lambda one: one.span(longest - tokens))
    span = part.span(longest - tokens)
    if span + tokens > limit:
        raise ContextError(
            f"'{part.name}' reads up to {span} earlier tokens beside {tokens} new ones, more than the {limit} "
            f"positions the model was trained on; read the prompt in chunks of {max(1, limit - span)} tokens or "
            "fewer (drive.prefill's chunk), or lower its budget, sinks and recent"
        )


def refuse_chunks(groups: Sequence[Group]) -> None:
    """Refuse a prompt in chunks where a method must see it whole."""
    for group in groups:
        for part in group.recipe.parts:
            if part.own_card.chunking == "whole_prompt":
                raise SessionError(
                    f"'{part.name}' must see the whole prompt at once, but it comes in chunks; "
                    "prefill without chunks, or use another method"
                )


def without_sinks(layer: int, own: LayerGeometry, scoring: Scoring) -> Scoring:
    """How the keys of a layer are scored. Refused where sinks join its softmax and its plan's geometry knows of none,
    or the other way."""
    if own.sinks != (scoring.sinks is not None):
        has, said = ("no sink logits", "has") if own.sinks else ("sink logits", "has none")
        raise SessionError(
            f"layer {layer} was given {has}, where the plan's geometry {said}; make a plan of this model"
        )
    return scoring.of_keys


def passed_in(session: Session, layer: int) -> int:
    """Columns of the batch that a layer has passed, padding included; without those of a step in which its turn is to
    come."""
    step = session.opened
    return session.passed - (step.tokens if step is not None and layer in session._open else 0)
