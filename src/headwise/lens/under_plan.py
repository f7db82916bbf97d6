"""What a plan leaves of a text to each head, and what the model then foretells worse.

The text is read under the plan but for its last tokens, and these follow one after the other, as an answer would. What
a head had looked at from them is told by dense attention, so that what the plan took away is told where it was missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from headwise.calibrate.subject import model_of
from headwise.engine.session_report import positions
from headwise.errors import ContextError
from headwise.lens.look import Look, looked_at
from headwise.lens.losses import token_losses
from headwise.lens.scene import Scene
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.drive import forced, prefill

FOLLOW, SHARE = 64, 4  # tokens that follow at most, and of how many of a text one does
LEAST = 48  # tokens of a text, so that what is read is a prompt to the cache and no step


@dataclass(frozen=True, eq=False)
class UnderPlan:
    """read: tokens of the text that were read as a prompt. kept: by layer that attends and KV head, the places of it
    that are there before the others follow. reach: [layers, query heads], the share of what each head looks at from
    the others, without a plan, that is there for it; not a number where a layer has no such head. worse: nats that
    each of the others but the first costs more under the plan."""

    read: int
    kept: dict[int, list[list[int]]]
    reach: torch.Tensor
    worse: torch.Tensor


@torch.no_grad()
def under_plan(scene: Scene, plan: Recipe | Plan | str | Path) -> UnderPlan:
    """Read the scene's text under a plan. ContextError for a text of fewer than LEAST tokens."""
    tokens, model, ids = scene.text.tokens, model_of(scene.subject), scene.text.ids.to(scene.subject.device)
    if tokens < LEAST:
        raise ContextError(f"the text has {tokens} tokens; give {LEAST} or more, of which a quarter follow the plan")
    read = tokens - min(FOLLOW, tokens // SHARE)
    cache = Cache(model, plan)
    logits = [prefill(model, cache, ids[:, :read])]
    assert cache.session is not None, "a prompt was read"
    layers = scene.subject.geometry.layers
    kept = {
        layer: [positions(cache.session, layer, 0, head).tolist() for head in range(layers[layer].kv_heads)]
        for layer in scene.subject.geometry.attending
    }
    logits += forced(model, cache, ids[:, read:-1])
    said = cross_entropy(torch.cat(logits).float(), ids[0, read:], reduction="none").cpu()
    dense = token_losses(scene, torch.arange(read - 1, tokens - 1)).cpu()
    return UnderPlan(read, kept, _reach(scene, kept, read), (said - dense)[1:])


def _reach(scene: Scene, kept: dict[int, list[list[int]]], read: int) -> torch.Tensor:
    """What of their attention from the tokens behind `read` heads find among what is kept, [layers, query heads]."""

    def of(look: Look) -> torch.Tensor:
        there = _there(kept[look.attention.layer], scene.text.tokens, read)
        found = look.mean(there.to(look.places.device))[:, read:].mean(1)  # [query heads, KV heads]
        heads = torch.arange(len(found), device=found.device)
        return found[heads, heads // (len(found) // there.shape[1])]

    layers = scene.subject.geometry.layers
    reach = torch.full((len(layers), max(one.query_heads for one in layers)), torch.nan)
    for layer, found in looked_at(scene.subject, scene.text, of).items():
        reach[layer, : len(found)] = found.cpu()
    return reach


def _there(kept: Sequence[Sequence[int]], tokens: int, read: int) -> torch.Tensor:
    """Which tokens are there for each KV head, float [tokens, KV heads]: those kept, and all that follow."""
    there = torch.zeros(tokens, len(kept))
    there[read:] = 1
    for head, places in enumerate(kept):
        there[list(places), head] = 1
    return there
