"""What is remembered of each stored token besides itself: the attention it has received, and an eviction's notes."""

from __future__ import annotations

import torch

from headwise.cache.kv_store import KVStore


def mass(store: KVStore, first: int, last: int) -> torch.Tensor:
    """Accumulated attention mass [h, n] of a run of lanes."""
    return store.extras("mass", first, last)[..., 0]


def add_mass(store: KVStore, lane: int, received: torch.Tensor) -> None:
    """Add `received [n]` to the attention mass of a lane's tokens."""
    have = store.extras("mass", lane, lane + 1)[0]
    store.write_extras("mass", lane, have + received[:, None].to(have.dtype))


def note(store: KVStore, lane: int, notes: torch.Tensor) -> None:
    """Replace the `notes [n, width]` about a lane's tokens."""
    store.write_extras("notes", lane, notes.clone().float())  # they may be a view of those that are there
