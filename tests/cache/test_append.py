"""New tokens of a step, written by one native call: what is stored is what the codecs of torch would have stored."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from headwise.cache.factory import new_store
from headwise.cache.paged import PagedStore
from headwise.cache.shape import Shape
from headwise.kernels import ops
from headwise.kernels.dispatch import BACKENDS, only

CODECS = [("plain", "plain"), ("int8", "int8"), ("int4/32", "int2/16"), ("plain", "int4/64"), ("int2/32", "int8")]
CODECS += [("balanced/int4/32", "balanced/int2/16"), ("balanced/int4/64", "plain")]
needs_kernels = pytest.mark.skipif(not BACKENDS.get("native").available()[0], reason="until the kernels are built")


def filled(codecs: tuple[str, str], dtype: torch.dtype, *, native: bool, notes: int) -> PagedStore:
    """Lanes of several lengths, after steps of one and three tokens, an eviction and a move of pages."""
    store = new_store(Shape(3, 64, 48, dtype, with_mass=bool(notes), notes=notes), [codecs])
    assert isinstance(store, PagedStore)
    random = torch.Generator().manual_seed(1)
    with nullcontext() if native else only("reference", "decoded"):
        for step, tokens in enumerate((40, 1, 3, 1, 1, 16, 1)):
            wide = torch.randn(3, tokens, 192, generator=random).to(dtype)  # keys and values lie inside longer rows
            positions = torch.arange(100 * step, 100 * step + tokens).expand(3, -1)
            store.append(wide[..., :64], wide[..., 100:148], positions)
            if step == 3:
                store.keep([torch.arange(0, length, lane + 1) for lane, length in enumerate(store.lengths)])
            if step == 5:
                store.permute_pages(torch.Generator().manual_seed(2))
    return store


@needs_kernels
@pytest.mark.parametrize("notes", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("codecs", CODECS, ids=" ".join)
def test_what_is_stored_is_the_same(codecs: tuple[str, str], dtype: torch.dtype, notes: int) -> None:
    one = filled(codecs, dtype, native=True, notes=notes).state()
    other = filled(codecs, dtype, native=False, notes=notes).state()
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert torch.equal(one[name], tensor), name


@needs_kernels
def test_positions_of_another_type_are_stored_as_they_are() -> None:
    store, new = PagedStore(Shape(2, 32, 32, torch.float32)), torch.ones(2, 1, 32)
    for place in range(3):
        store.append(new, new, torch.full((2, 1), place, dtype=torch.int32))
    assert store.positions(1).tolist() == [0, 1, 2]


@needs_kernels
def test_the_call_is_made_and_a_fork_writes_to_its_own_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    offer = ops.prepare_append.offer
    monkeypatch.setattr(ops.prepare_append, "offer", lambda request: made.append(1) or offer(request))
    store = PagedStore(Shape(2, 32, 32, torch.float32))
    new = torch.ones(2, 1, 32)
    store.append(new.expand(2, 30, 32), new.expand(2, 30, 32), torch.arange(30).expand(2, -1))
    for place, found in ((30, 1), (31, 1), (32, 2), (33, 2)):  # at 32 two pages are full, and the pool grows
        store.append(new, new, torch.full((2, 1), place))
        assert len(made) == found, "once while the pool lies where it does"
    fork = store.fork()
    fork.append(2 * new, 2 * new, torch.full((2, 1), 34))
    store.append(3 * new, 3 * new, torch.full((2, 1), 34))
    assert float(fork.keys(0, 2)[0, -1, 0]) == 2.0
    assert float(store.keys(0, 2)[0, -1, 0]) == 3.0
    assert torch.equal(store.positions(1), torch.arange(35, dtype=torch.int32))
