"""Prefill: which (query, key) pairs the prompt computes. Nothing is forgotten. The verb is `where`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headwise.attention.view import View
from headwise.attention.where import Where
from headwise.registry import Card


@dataclass(frozen=True)
class Prefill:
    """Base of the prefill patterns."""

    card: ClassVar[Card]
    needs: ClassVar[frozenset[str]] = frozenset()

    def where(self, view: View) -> Where:
        """The pairs to compute for this chunk: its t queries (`view.queries`) are the last t of the n stored tokens."""
        raise NotImplementedError
