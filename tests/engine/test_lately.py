"""How much of a window lies in a pool, as tokens come and are taken back after its places were found."""

from __future__ import annotations

import torch

from headwise.cache.paged import PagedStore
from headwise.cache.shape import Shape
from headwise.engine.lately import Lately


def pool(positions: list[int]) -> PagedStore:
    store = PagedStore(Shape(lanes=2, key_width=16, value_width=16, dtype=torch.float32))
    x = torch.zeros(2, len(positions), 16)
    store.append(x, x, torch.tensor([positions] * 2))
    return store


def test_a_window_is_counted_as_tokens_come_and_are_taken_back() -> None:
    fine, coarse = pool([0, 1, *range(40, 60)]), pool(list(range(2, 40)))
    lately = Lately([fine, coarse], [60])
    positions, rest = [0, 1, *range(40, 60)], list(range(2, 40))
    for seen in (60, 58, 59, 75, 130, 57):  # below 60: some that were known are gone
        fine.pages.lengths = [2 + seen - 40] * 2
        own = [*positions[:2], *range(40, seen)]
        for window in (1, 4, 19, 30, 59):
            inside = [sum(place >= seen - window for place in places) for places in (own, rest)]
            assert lately.counts(window, [seen]) == inside, (seen, window)


def test_lanes_that_differ_are_not_counted() -> None:
    store = pool(list(range(10)))
    assert Lately([store], [10, 9]).counts(4, [10, 9]) is None
