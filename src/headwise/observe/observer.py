"""Observers: shown what a model attends with, layer by layer, while it reads a document densely."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from headwise.attention.view import View
from headwise.errors import HeadwiseError
from headwise.geometry import Geometry


@dataclass(frozen=True, eq=False)
class Observer(ABC):
    """Looks at every layer of a document that is read in pieces, and gathers what it is made for.

    tokens: of the whole document that is being read, as who reads it tells. What an observer gathers in has to stay
    the same object from document to document.
    """

    tokens: int = field(default=0, kw_only=True)

    needs: ClassVar[frozenset[str]] = frozenset({"keys", "values", "queries"})  # what its views show

    @abstractmethod
    def look(self, view: View) -> None:
        """Note what a piece of a document shows in this layer: its queries, and the keys of all tokens so far."""

    def ends(self, view: View) -> bool:
        """Whether this is the document's last piece."""
        return view.seen == self.tokens


@dataclass(frozen=True, eq=False)
class LastQueries(Observer):
    """Notes, by layer, what `of` makes of the attention [h, g, window, n] of the last `window` queries of a piece:
    [h, g, ...]."""

    needs = frozenset({"keys", "queries"})
    window: int
    of: Callable[[torch.Tensor], torch.Tensor]
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def look(self, view: View) -> None:
        self.seen[view.layer] = self.of(view.observe(min(self.window, view.queries.shape[2])))

    def noted(self, geometry: Geometry) -> torch.Tensor:
        """What was noted last of each layer, [layers, KV heads, g, ...]. Raises HeadwiseError for a model with sliding
        layers, which hold no heads that could retrieve."""
        if missing := sorted(set(geometry.attending) - set(self.seen)):
            raise HeadwiseError(f"layers {missing} have sliding windows; retrieval heads are told for full layers only")
        return geometry.gathered(self.seen)
