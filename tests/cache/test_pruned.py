"""Keys without some channels: which ones stay, what they take, and what scores lose."""

from __future__ import annotations

import torch

from headwise.cache.factory import new_store
from headwise.cache.levelled import LevelledStore
from headwise.cache.shape import Shape
from headwise.methods.compress.think import ThinK

TOKENS, WIDTH = 600, 64


def settled(method: ThinK, keys: torch.Tensor, queries: torch.Tensor | None) -> LevelledStore:
    """A store of keys [h, n, d] brought to the method's coarser level, after queries [h, d] were met."""
    store = new_store(Shape(len(keys), WIDTH, WIDTH, torch.float32), method.levels)
    assert isinstance(store, LevelledStore)
    assert store.parts[1].unfitted
    if queries is not None:
        store.parts[1].meet(queries.square(), True)
    store.append(keys, torch.randn_like(keys), torch.arange(TOKENS).repeat(len(keys), 1))
    store.demote([torch.ones(TOKENS).long()] * len(keys))
    assert not store.parts[1].unfitted
    return store


def left(store: LevelledStore, head: int) -> list[int]:
    return store.segment(head, head + 1).keys[0].any(0).nonzero()[:, 0].tolist()


def test_large_channels_that_no_query_meets_leave_first() -> None:
    keys, queries = torch.randn(2, TOKENS, WIDTH), torch.ones(2, WIDTH)
    keys[:, :, 3] *= 50  # as keys of trained models have it
    keys[:, :, :32] *= 2
    queries[1, 3] = 1e-4
    store = settled(ThinK(0.5), keys, queries)
    assert left(store, 0) == list(range(32))
    assert len(left(store, 1)) == 32 and 3 not in left(store, 1)
    assert 3 in left(settled(ThinK(0.5), keys, None), 1), "without queries the keys' own energy tells"


def test_what_stays_is_as_it_was_and_the_rest_is_freed() -> None:
    keys = torch.randn(2, TOKENS, WIDTH)
    store = settled(ThinK(0.25), keys, torch.ones(2, WIDTH))
    held = store.segment(0, 2).keys
    assert torch.equal(held[held != 0], keys[held != 0])
    dense = new_store(store.shape, [("plain", "plain")])
    dense.append(keys, keys, torch.arange(TOKENS).repeat(2, 1))
    saved = 1 - store.nbytes / dense.nbytes
    print(f"saved {saved:.3f}, of 0.375 less the choice of channels")
    assert 0.33 < saved < 0.38


def test_scores_lose_less_than_by_the_energy_of_keys_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, TOKENS, WIDTH, generator=generator) * torch.rand(WIDTH, generator=generator)
    queries = torch.randn(200, WIDTH, generator=generator) * torch.rand(WIDTH, generator=generator) ** 2
    energy = queries.square().mean(0, keepdim=True).sqrt()
    scores = queries @ keys[0].T
    lost = [
        float((queries @ settled(ThinK(0.5), keys, met).segment(0, 1).keys[0].T - scores).norm() / scores.norm())
        for met in (energy, None)
    ]
    print(lost)
    assert lost[0] < 0.6 * lost[1]
