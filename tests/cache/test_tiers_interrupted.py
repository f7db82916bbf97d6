"""A tiered store that is interrupted at any line of what changes it goes back to its checkpoint, and works on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headwise.cache.shape import Shape
from headwise.cache.tiers import Tier
from headwise.cache.tiers.store import TieredStore
from tests.fuzz.faults import fails

SHAPE = Shape(2, 8, 8, torch.float32)


def grow(store: TieredStore, tokens: int = 60) -> None:
    """Append tokens [lanes, tokens] after those that are there."""
    have, made = store.lengths[0], torch.Generator().manual_seed(store.lengths[0])
    keys, values = (torch.randn(2, tokens, 8, generator=made) for _ in range(2))
    store.append(keys, values, torch.arange(have, have + tokens).expand(2, tokens))


def shrink(store: TieredStore) -> None:
    """Let every third token stay."""
    store.keep([torch.arange(0, length, 3) for length in store.lengths])


@pytest.mark.parametrize("change", [grow, shrink])
def test_every_line_may_be_the_last(change: Callable[[TieredStore], None], tmp_path: Path) -> None:
    line, raised = 0, "not yet"
    while raised:
        line += 1
        store = TieredStore(SHAPE, Tier(8 * 16 * 64, tmp_path))
        grow(store, 100)
        expected, checkpoint = store.state(), store.checkpoint()
        raised = fails("line", line, functools.partial(change, store))
        checkpoint.back()
        assert all(torch.equal(one, expected[name]) for name, one in store.state().items()), raised
        grow(store)
        assert store.lengths == [160, 160]
    assert line > 20
