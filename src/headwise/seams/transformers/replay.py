"""A prompt read once, by dense attention, and handed to any plan that lets the prompt see all of itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.cache.states import States
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel, followed
from headwise.seams.transformers.drive import Progress, prefill
from headwise.seams.transformers.probe import Asked


@dataclass(frozen=True)
class Call:
    """What the model handed to one layer of one step: q [1, H, t, d], k [1, h, t, d], v [1, h, t, e], and what the
    layer answered, out [1, H, t, e]."""

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    asked: Asked
    out: torch.Tensor


class Recorder(Cache):
    """A cache that also notes every call."""

    def __init__(self, model: PreTrainedModel, recipe: str | Plan = "", *, seed: int = 0) -> None:
        followed(model)
        super().__init__(model, recipe, seed=seed)
        self.calls: list[Call] = []

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """As Cache does, and noted."""
        out = super().attend(layer, q, k, v, mask, asked)
        self.calls.append(Call(layer, q, k, v, asked, out))
        return out


@dataclass(frozen=True)
class Recording:
    """A prompt as dense attention read it in one pass: its ids [1, n], the calls of all layers, the last logits
    [1, vocab], and the states that layers passed on."""

    ids: torch.Tensor
    calls: tuple[Call, ...]
    logits: torch.Tensor
    states: States


def read_once(model: PreTrainedModel, ids: torch.Tensor) -> Recording:
    """Read the prompt `ids [1, n]` in one pass under dense attention."""
    recorder = Recorder(model)
    logits = prefill(model, recorder, ids, None)
    return Recording(ids, tuple(recorder.calls), logits, recorder.states.fork())


def shares(plan: Plan) -> bool:
    """Whether `plan` computes in one pass of a prompt exactly what dense attention does: evictions come at the end of
    the pass, codecs are read only after it, selection is for new tokens; so only prefill patterns and
    steering differ, and selections at positions of their own."""
    recipes = {recipe for heads in plan.recipes for recipe in heads}
    return all(recipe.prefill is None and recipe.steer is None and not recipe.repositions for recipe in recipes)


def replay(model: PreTrainedModel, recording: Recording, cache: Cache) -> None:
    """Give a recorded prompt to an empty `cache`: it stores, scores and evicts as if the model had read the prompt.

    Each call tells what its layer answered, so attention is computed again only where a group keeps its log-sum-exp,
    and the model is asked only by methods that let it read the prompt again.
    """
    with cache.prompt(recording.ids.shape[1]), torch.no_grad():
        cache.opening = recording.states.fork()
        cache.reads(recording.ids)
        for call in recording.calls:
            cache.absorb(call.layer, call.q, call.k, call.v, call.asked)
        cache.succeeded(model)


def open_prompt(
    model: PreTrainedModel,
    cache: Cache,
    ids: torch.Tensor,
    recording: Recording | None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Fill `cache` with the prompt, from a dense `recording` of it where there is one; logits [1, vocab] after it."""
    if recording is None or not shares(cache.plan):
        return prefill(model, cache, ids, None, progress)
    replay(model, recording, cache)
    return recording.logits
