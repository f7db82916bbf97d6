"""What a selection keeps of each block of stored keys: made once, when the block is whole, and never again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from headwise.cache.journal import Rollback

if TYPE_CHECKING:
    from headwise.cache.kv_store import KVStore

Summarise = Callable[[torch.Tensor], torch.Tensor]  # blocks of keys [h, m, size, d] -> [h, m, ...]


class Summaries:
    """By run of lanes, the summaries of its whole blocks, with room for more. Cleared when stored tokens leave or move.

    What was handed out stays as it is: later blocks are written behind it.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], tuple[torch.Tensor, int]] = {}

    def of(self, store: KVStore, first: int, last: int, size: int, make: Summarise) -> torch.Tensor:
        """Summaries `[h, blocks, ...]` of the whole blocks of `size` entries of a run of lanes, each made once."""
        whole = store.lengths[first] // size
        rows, made = self._held.get((first, last), (None, 0))
        if rows is None or whole > made:
            keys = store.keys(first, last, made * size)[:, : (whole - made) * size]
            new = make(keys.unflatten(1, (whole - made, size)))
            rows = _with_room(rows, made, new)
            rows[:, made:whole] = new
            self._held[first, last] = (rows, whole)
        return rows[:, :whole]

    def clear(self) -> None:
        """Forget all."""
        self._held = {}

    def checkpoint(self) -> Rollback:
        """What to call to have again what is held now."""
        held = dict(self._held)

        def back() -> None:
            self._held = held

        return back

    @property
    def nbytes(self) -> int:
        """Bytes of the real storages."""
        return sum(rows.untyped_storage().nbytes() for rows, _ in self._held.values()) if self._held else 0


def _with_room(rows: torch.Tensor | None, made: int, new: torch.Tensor) -> torch.Tensor:
    """A tensor that begins with the first `made` of `rows` and has room for `new`, and a sixteenth more."""
    whole = made + new.shape[1]
    if rows is not None and rows.shape[1] >= whole:
        return rows
    grown = new.new_empty(new.shape[0], whole + max(16, whole // 16), *new.shape[2:])
    if rows is not None:
        grown[:, :made] = rows[:, :made]
    return grown
