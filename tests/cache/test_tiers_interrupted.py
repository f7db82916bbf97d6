"""A tiered store that is interrupted at any line of what changes it goes back to its checkpoint, and works on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from headwise.cache.store import Shape
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
    store, untouched = (TieredStore(SHAPE, Tier(8 * 16 * 64, tmp_path)) for _ in range(2))
    for one in (store, untouched):
        grow(one, 100)
    line, expected = 0, untouched.state()
    change(untouched)
    while True:
        line += 1
        checkpoint = store.checkpoint()
        raised = fails("line", line, lambda: change(store))
        if not raised:
            break
        checkpoint.back()
        assert all(torch.equal(one, expected[name]) for name, one in store.state().items()), raised
        if line % 10 == 0:
            grow(store)
            store.truncate([100, 100])
    assert line > 20
    assert all(torch.equal(one, untouched.state()[name]) for name, one in store.state().items())
