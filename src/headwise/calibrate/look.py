"""Showing a model to observers while it reads densely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from headwise.attention.view import View
from headwise.errors import HeadwiseError
from headwise.forms import Causal, Where
from headwise.methods.prefill import Prefill
from headwise.observe import Observer
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import Card
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import prefill

PIECE = 2048  # most tokens of a document that are read at once


@dataclass(frozen=True, eq=False)
class Watched(Prefill):
    """A prefill part that shows a prompt to an observer and reads all of it. Not registered: it is no method."""

    observer: Observer

    name: ClassVar[str] = "observer"
    part: ClassVar[str] = "prefill"
    card: ClassVar[Card] = Card("Looks and reads everything", "none", lossy=False)

    def __post_init__(self) -> None:
        """Nothing is checked: no sentence names it."""

    @property
    def view_needs(self) -> frozenset[str]:
        """What the observer looks at."""
        return self.observer.needs

    def where(self, view: View) -> Where:
        """Causal attention, after a look."""
        self.observer.look(view)
        return Causal()


def observe(model: PreTrainedModel, observer: Observer, documents: Sequence[torch.Tensor]) -> None:
    """Let the model read each of `documents`, ids [1, n], under the observer's eyes: once, in pieces, so that of
    reading nothing but keys and values grows with a document."""
    if not documents:
        raise HeadwiseError("there is nothing to calibrate on; give at least one document")
    for ids in documents:
        prefill(model, watched(model, replace(observer, tokens=ids.shape[1])), ids, PIECE)


def watched(model: PreTrainedModel, observer: Observer) -> Cache:
    """An empty dense cache under the observer's eyes."""
    cache = Cache(model, "")
    cache.plan = Plan.uniform(cache.seam.geometry, Recipe(prefill=Watched(observer)), cache.seam.fingerprint)
    return cache
