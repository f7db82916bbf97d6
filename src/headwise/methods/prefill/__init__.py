"""Prefill: which (query, key) pairs the prompt computes. Nothing is forgotten. The verb is `where`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.forms import Blocks, Where, Window
from headwise.knobs import NonNegative, Positive
from headwise.methods import Method


@dataclass(frozen=True)
class Prefill(Method):
    """Base of the prefill patterns."""

    def at(self, calibration: Mapping[str, torch.Tensor], layer: int, head: int) -> Prefill | None:
        """The pattern with the knobs of one KV head, told by the plan's tensors [layers, KV heads, ...]; None: the head
        reads everything."""
        return self

    @abstractmethod
    def where(self, view: View) -> Where:
        """The pairs to compute for this chunk: its t queries (`view.queries`) are the last t of the n stored tokens."""


@dataclass(frozen=True)
class Windowed(Prefill):
    """Base of the patterns of the first tokens and a window of the latest, the same for all heads of a view.

    sinks: first tokens that every query reads. window: latest tokens that a query reads, itself included.
    """

    sinks: NonNegative = 128
    window: Positive = 1024

    def reach(self, seen: int) -> int:
        """Latest tokens that a query reads, itself included, once the heads have seen so many."""
        return self.window

    def where(self, view: View) -> Where:
        """Window and sinks."""
        return Window(self.reach(view.seen) - 1, self.sinks)

    def plain(self, view: View) -> Where:
        """The same as a map of 1 x 1 blocks, pair by pair."""
        t, n, reach = view.queries.shape[2], view.positions.shape[1], self.reach(view.seen)
        rows = [[j < self.sinks or i - j < reach for j in range(n)] for i in range(n - t, n)]
        return Blocks.from_map(1, torch.tensor([rows]))


def by_distance(rows: torch.Tensor) -> torch.Tensor:
    """Sums [h, n] of attention rows [h, w, n] of the last w queries along each distance query - key."""
    w, n = rows.shape[1:]
    along = torch.zeros_like(rows[:, 0])
    for i in range(w):
        reach = n - w + i + 1
        along[:, :reach] += rows[:, i, :reach].flip(1)
    return along
