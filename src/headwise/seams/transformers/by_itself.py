"""Models that attend by themselves: each layer is handed back all keys and values of its text, and attends to them by
its own arithmetic and its own masks. What a plan can say there is in what form they lie; a recipe that says more is
refused."""

from __future__ import annotations

from typing import Any

import torch

from headwise.engine.session import Session
from headwise.errors import UnsupportedModel
from headwise.forms import Scoring
from headwise.plan import Plan
from headwise.seams.transformers.probe import Asked, Sighting
from headwise.seams.transformers.recorder import Recorder

LOOKS = frozenset({"queries", "mass", "memory"})  # what nobody sees of attention that headwise does not compute


def heads_of(config: Any) -> int:
    """Query heads of a layer, by the config of a text part; 1 where its layers differ in it."""
    try:
        return getattr(config, "num_attention_heads", None) or 1
    except RuntimeError:
        return 1


class Bystander(Recorder):
    """A Recorder of a model that attends by itself. heads: query heads, which no layer tells."""

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__(layers)
        self.heads = heads

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note the keys [b, h, t, d] and values of a layer, which are all that there are."""
        kv_heads = key_states.shape[1]
        heads = self.heads if self.heads % kv_heads == 0 else kv_heads
        asked = Asked(Scoring(key_states.shape[-1] ** -0.5), None)
        self.sightings[layer_idx] = Sighting(key_states[0], value_states.shape[-1], heads, asked)
        return key_states, value_states

    def update_indexer(  # type: ignore[override]
        self, indexer_key_states: torch.Tensor, layer_idx: int, **kwargs: Any
    ) -> torch.Tensor:
        """The keys [b, t, d] by which a layer's indexer chooses, which are all that there are."""
        return indexer_key_states

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Key length and offset, of an empty cache."""
        return (query_length if isinstance(query_length, int) else query_length.shape[0]), 0


def refuse_reading(plan: Plan, why: str) -> None:
    """Refuse a plan that says more than in what form keys and values lie, for a model that attends by itself; `why`
    it does."""
    looking = {group.recipe.compress for group in Session(plan).groups if group.store.unfitted}
    for part in {part for row in plan.recipes for recipe in row for part in recipe.parts}:
        if part.part != "compress" or part in looking or part.view_needs & LOOKS or part.last_queries:
            raise UnsupportedModel(
                f"'{part.name}' cannot be honoured here: {why}, so that the model attends by itself and a plan can say "
                "only in what form keys and values lie; leave it out, or use a compression such as int8"
            )
