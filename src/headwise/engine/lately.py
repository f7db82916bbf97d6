"""Which tokens of a sliding layer lie in the newest one's window, where they lie at several levels of precision."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch

from headwise.cache.paged import PagedStore


class Lately:
    """The places of tokens that pools hold when this is made, and of those that come after them, one by one.

    pools: each with equally many tokens in all lanes, at the same places before the newest token, the older ones
    first; else nothing is said. seen: tokens passed, by batch row.
    """

    def __init__(self, pools: Sequence[PagedStore], seen: Sequence[int]) -> None:
        self._pools, self._seen = pools, seen
        self._places = [_places(pool, seen) for pool in pools]

    def counts(self, window: int, seen: Sequence[int]) -> list[int] | None:
        """By pool, how many of its tokens are among the last `window` when `seen` have passed; they are its newest.
        None where that is not the same in all lanes."""
        passed = seen[0] - self._seen[0]
        if any(now - then != passed for now, then in zip(seen, self._seen, strict=True)):
            return None
        first, counts = passed - window, []
        for pool, places in zip(self._pools, self._places, strict=True):
            if places is None:
                return None
            held = pool.lengths[0]  # fewer than were known, where tokens were taken back
            gone = bisect_left(places, first, hi=min(len(places), held))
            counts.append(held - gone - max(0, min(first, held - len(places))))
        return counts


def _places(pool: PagedStore, seen: Sequence[int]) -> list[int] | None:
    """Where the tokens of every lane lie, counted from the one that comes next: the newest is at -1."""
    if len(set(pool.lengths)) > 1:
        return None
    passed = torch.tensor(seen).repeat_interleave(pool.shape.lanes // len(seen))
    places = pool.positions_of(0, pool.shape.lanes).cpu().long() - passed[:, None]
    if bool((places != places[:1]).any()) or bool((places.diff(dim=1) <= 0).any()):
        return None
    found: list[int] = places[0].tolist()
    return found
