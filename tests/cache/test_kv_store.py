"""The laws of every kind of store. A new kind gets them by a line in KINDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from headwise.attention import attend_pages
from headwise.cache.extras import add_mass, mass, note
from headwise.cache.factory import new_span, new_store
from headwise.cache.fitted import FittedStore
from headwise.cache.grouped import GroupedStore
from headwise.cache.kv_store import KVStore
from headwise.cache.projected import ProjectedStore
from headwise.cache.shape import Shape
from headwise.cache.state import State
from headwise.cache.tiers import Tier
from headwise.engine.read import _gathered
from headwise.errors import SessionError
from headwise.forms import Causal, Full, Scoring, Tokens, Where
from tests.attention_cases import attend_on
from tests.methods.views import rope

PLAIN, INT8 = ("plain", "plain"), ("int8", "int8")
CHANNELS, PROJECTED = ("channel4/32", "int4/32"), ("unrotated0.25/plain", "lowrank0.25/int8")
PRUNED = ("pruned0.5/plain", "plain")
BALANCED = ("balanced/int4/32", "balanced/int4/16")
SPANNED = ("spanned0.25/plain", "spanned0.25/plain")
ROWS, HEADS, TOKENS, SHAPE = 2, 2, 300, Shape(4, 32, 32, torch.float32, rope=rope(32), rows=2)
NOTED = replace(SHAPE, with_mass=True, notes=2)

# An empty store of each kind.
KINDS: dict[str, Callable[[], KVStore]] = {
    "paged": lambda: new_store(NOTED, [PLAIN]),
    "rounded": lambda: new_store(NOTED, [INT8]),
    "tiered": lambda: new_store(NOTED, [PLAIN], tier=Tier(8 * 16 * 64 * 4 + 1)),
    "levelled": lambda: new_store(NOTED, [PLAIN, INT8]),
    "levelled, grouped": lambda: new_store(NOTED, [PLAIN, INT8, CHANNELS]),
    "levelled, projected": lambda: new_store(NOTED, [PLAIN, PROJECTED]),
    "levelled, pruned": lambda: new_store(NOTED, [PLAIN, PRUNED]),
    "levelled, spanned": lambda: new_store(SHAPE, [PLAIN, SPANNED]),
    "balanced": lambda: new_store(NOTED, [BALANCED]),
    "levelled, balanced": lambda: new_store(NOTED, [PLAIN, BALANCED]),
    "grouped": lambda: GroupedStore(replace(NOTED, codecs=CHANNELS)),
    "projected": lambda: ProjectedStore(replace(NOTED, codecs=PROJECTED)),
    "spanned": lambda: new_span([SHAPE], [PLAIN, SPANNED]).shares[0],
}
TOGETHER = ("levelled, spanned", "spanned")  # tokens of all heads lie together: none leaves alone, nothing is noted
REGROUPS = ("levelled, grouped", "grouped")  # what stays may be rounded anew when others leave
ROUNDED = 0.6  # of channels by 4 bits, twice
kinds = pytest.mark.parametrize("kind", KINDS)


def append(store: KVStore, start: int, tokens: int, seed: int = 0) -> None:
    """Tokens at positions from `start` on, in all lanes."""
    generator = torch.Generator().manual_seed(start + seed)
    keys, values = (torch.randn(store.shape.lanes, tokens, 32, generator=generator) for _ in range(2))
    store.append(keys, values, torch.arange(start, start + tokens).repeat(store.shape.lanes, 1))


def filled(kind: str) -> KVStore:
    """A store of TOKENS tokens in every lane, the older ones at coarser levels where there are some."""
    store = KINDS[kind]()
    append(store, 0, TOKENS - 20)
    if (levels := len(store.parts)) > 1:
        age = torch.arange(TOKENS - 20).flip(0)
        store.demote([(age >= 40).long() + (age >= 140).long().clamp(max=levels - 2)] * store.shape.lanes)
        assert all(length for part in store.parts for length in part.lengths), "every level holds some"
    append(store, TOKENS - 20, 20)
    return store


def read(store: KVStore) -> list[tuple[torch.Tensor, ...]]:
    """Keys [n, d], values [n, e] and positions [n] of every lane."""
    held = [store.segment(lane, lane + 1) for lane in range(store.shape.lanes)]
    return [(one.keys[0].clone(), one.values[0].clone(), one.positions[0].clone()) for one in held]


def same(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]], rounded: float = 0.0) -> None:
    """Two readings are equal; keys up to `rounded`."""
    for (keys, values, positions), expected in zip(one, other, strict=True):
        assert torch.equal(positions, expected[2]) and torch.equal(values, expected[1])
        assert torch.equal(keys, expected[0]) or bool(((keys - expected[0]).abs() <= rounded).all())


def every_second(store: KVStore) -> list[torch.Tensor]:
    """Entries of each lane, of lane i from the i-th on."""
    return [torch.arange(lane, length, 2) for lane, length in enumerate(store.lengths)]


def concrete(kind: type[KVStore]) -> Iterator[type[KVStore]]:
    for one in kind.__subclasses__():
        if one is not FittedStore:  # what two kinds share, and none itself
            yield one
        yield from concrete(one)


def test_every_kind_is_listed() -> None:
    stores = [make() for make in KINDS.values()]
    assert {type(part) for store in stores for part in (store, *store.parts)} == set(concrete(KVStore))


@kinds
def test_all_ways_of_reading_agree(kind: str) -> None:
    store = filled(kind)
    assert store.lengths == [TOKENS] * 4
    assert [lane for first, last in store.runs() for lane in range(first, last)] == [0, 1, 2, 3]
    for first, last in store.runs():
        whole = store.segment(first, last)
        assert torch.equal(whole.positions, torch.arange(TOKENS).int().repeat(last - first, 1))
        assert torch.equal(store.positions_of(first, last), whole.positions)
        assert torch.equal(store.keys(first, last), whole.keys) and torch.equal(store.values(first, last), whole.values)
        torch.testing.assert_close(store.keys(first, last, 123), whole.keys[:, 123:])
        assert torch.equal(store.segment(first, last, 77).values, whole.values[:, :77])
        assert store.levels(first, last).shape == (last - first, TOKENS)
        for lane in range(first, last):
            assert torch.equal(store.segment(lane, lane + 1).keys[0], whole.keys[lane - first])


@kinds
def test_a_short_append_is_cut_off_again(kind: str) -> None:
    store = filled(kind)
    before = read(store)
    append(store, TOKENS, 5)
    assert store.lengths == [TOKENS + 5] * 4
    store.truncate([TOKENS] * 4)
    same(read(store), before)
    limits = [100, 100, 290, 290]
    store.truncate(limits)
    same(read(store), [tuple(x[:n] for x in lane) for lane, n in zip(before, limits, strict=True)])
    store.truncate([0] * 4)
    assert store.lengths == [0] * 4
    append(store, 0, 40)
    assert store.lengths == [40] * 4


@kinds
def test_lanes_take_the_last_of_what_is_appended(kind: str) -> None:
    store, counts = KINDS[kind](), [3, 3, 9, 9]
    keys, values = torch.randn(2, 4, 9, 32)
    store.append(keys, values, torch.arange(9).repeat(4, 1), counts)
    assert store.lengths == counts
    assert [lane[2].tolist() for lane in read(store)] == [list(range(9 - n, 9)) for n in counts]


@kinds
def test_what_is_kept_is_what_was_chosen(kind: str) -> None:
    store = filled(kind)
    before, chosen = read(store), every_second(store)
    with pytest.raises(SessionError, match=f"holds {TOKENS} tokens"):
        store.keep([torch.tensor([TOKENS])] * 4)
    store.keep([torch.arange(TOKENS)] * 4)
    same(read(store), before)
    if kind in TOGETHER:
        with pytest.raises(SessionError, match="evict nothing"):
            store.keep(chosen)
        same(read(store), before)
        return
    store.keep(chosen)
    expected = [tuple(x[entries] for x in lane) for lane, entries in zip(before, chosen, strict=True)]
    same(read(store), expected, ROUNDED if kind in REGROUPS else 0.0)


@kinds
def test_rows_are_selected_repeated_and_dropped(kind: str) -> None:
    store = filled(kind)
    before, lanes = read(store), [2, 3, 0, 1, 2, 3]
    if kind == "tiered":
        with pytest.raises(SessionError, match="leave resident= out"):
            store.select(lanes)
        return
    store.select(lanes)
    assert (store.shape.lanes, store.shape.rows) == (6, 3)
    same(read(store), [before[lane] for lane in lanes])
    append(store, TOKENS, 3)
    assert store.lengths == [TOKENS + 3] * 6


@kinds
def test_a_fork_goes_its_own_way(kind: str) -> None:
    store = filled(kind)
    before, nbytes = read(store), store.nbytes
    fork = store.fork()
    append(fork, TOKENS, 30)
    fork.truncate([50] * 4)
    append(fork, 50, 7, seed=1)
    same(read(store), before)
    assert store.nbytes == nbytes
    other = store.fork()
    store.truncate([10] * 4)
    same(read(other), before)


@kinds
def test_a_checkpoint_takes_back_whatever_came_after(kind: str) -> None:
    store = filled(kind)
    before = store.state()
    checkpoint = store.checkpoint()
    append(store, TOKENS, 30)
    if kind not in TOGETHER:
        add_mass(store, 1, torch.ones(TOKENS + 30))
        store.revalue(2, torch.arange(0, TOKENS, 7), torch.randn(43, 32))
        store.keep(every_second(store))
    if len(store.parts) > 1:
        store.demote([torch.ones(length, dtype=torch.int64) for length in store.lengths])
    append(store, TOKENS + 30, 3)
    checkpoint.back()
    after = store.state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    append(store, TOKENS, 2)
    assert store.lengths == [TOKENS + 2] * 4


@kinds
def test_a_state_is_taken_over_by_an_empty_store(kind: str) -> None:
    store, other = filled(kind), KINDS[kind]()
    if kind not in TOGETHER:
        store.keep(every_second(store))
    state, seen = store.state(), [TOKENS] * 4
    checked = State(state)
    other.expect(checked, seen)
    checked.refuse_others()
    other.restore({name: tensor.clone() for name, tensor in state.items()})
    same(read(other), read(store))
    again = other.state()
    assert again.keys() == state.keys() and all(torch.equal(again[name], one) for name, one in state.items())
    for name in state:
        with pytest.raises(SessionError, match=f"'{name}' is missing"):
            other.expect(State({key: one for key, one in state.items() if key != name}), seen)
    with pytest.raises(SessionError, match=r"has seen 100|to below 100"):
        other.expect(State(state), [100] * 4)


@kinds
@pytest.mark.parametrize("where", [Full(), Causal(), Tokens([torch.arange(2, 290, 9)] * 2)], ids=str)
@pytest.mark.parametrize("stop", [None, 280])
def test_pieces_add_up_to_what_is_read(kind: str, where: Where, stop: int | None) -> None:
    store = filled(kind)
    tokens = 1 if isinstance(where, Full) else 3
    q = torch.randn(2, 2, tokens, 32, generator=torch.Generator().manual_seed(1))
    if isinstance(where, Tokens) and stop is not None:
        where = Tokens([torch.arange(2, 280, 9)] * 2)
    for first in (0, 2):
        pieces = store.pieces(first, first + 2, where, tokens, stop)
        got = _gathered([(lanes, attend_pages(q[lanes], paged, form, Scoring(0.2))) for lanes, paged, form in pieces])
        held = store.segment(first, first + 2, stop)
        expected = attend_on("reference", q, held.keys, held.values, where, Scoring(0.2))
        torch.testing.assert_close(got.out, expected.out, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.lse, expected.lse, atol=1e-5, rtol=1e-5)


@kinds
def test_bytes_are_what_was_predicted(kind: str) -> None:
    store = filled(kind)
    by_level = [tuple(counts) for counts in zip(*(part.lengths for part in store.parts), strict=True)]
    predicted = store.predicted(by_level)
    if kind == "tiered":
        assert store.nbytes < predicted / 3
        return
    assert store.nbytes <= 1.1 * predicted
    store.truncate([0] * 4)
    assert store.nbytes == 0


@kinds
def test_what_is_remembered_goes_with_its_token(kind: str) -> None:
    store = filled(kind)
    if kind in TOGETHER:
        with pytest.raises(SessionError, match="evict nothing"):
            mass(store, 0, 1)
        return
    add_mass(store, 1, torch.arange(float(TOKENS)))
    note(store, 1, torch.arange(2.0 * TOKENS).view(TOKENS, 2))
    add_mass(store, 1, torch.ones(TOKENS))
    chosen = every_second(store)
    store.keep(chosen)
    if len(store.parts) > 1:
        store.demote([torch.ones(n, dtype=torch.int64) for n in store.lengths])
    assert torch.equal(mass(store, 1, 2)[0], chosen[1] + 1.0)
    assert torch.equal(store.extras("notes", 1, 2)[0, :, 0], 2.0 * chosen[1])
    assert not mass(store, 2, 3).any()


@kinds
def test_values_are_replaced_where_they_lie(kind: str) -> None:
    store, entries = filled(kind), torch.arange(3, TOKENS, 11)
    before = read(store)
    if kind in TOGETHER:
        with pytest.raises(SessionError, match="evict nothing"):
            store.revalue(1, entries, torch.zeros(len(entries), 32))
        return
    store.revalue(1, entries, before[1][1][entries].flip(0))
    after = read(store)
    others = torch.ones(TOKENS, dtype=torch.bool).index_fill(0, entries, False)
    for lane in range(4):
        assert torch.equal(after[lane][0], before[lane][0])
        assert torch.equal(after[lane][1][others], before[lane][1][others])
    changed = (after[1][1][entries] != before[1][1][entries]).any(-1)
    assert changed.float().mean() > 0.9 and torch.equal(after[2][1], before[2][1])


@kinds
def test_summaries_are_of_the_keys_in_reading_order_and_go_when_tokens_do(kind: str) -> None:
    store = filled(kind)
    made: list[int] = []

    def largest(blocks: torch.Tensor) -> torch.Tensor:
        made.append(blocks.shape[1])
        return blocks.amax(2)

    for added in (0, 40):
        if added:
            append(store, TOKENS, added)
        got = store.summaries.of(store, 0, 2, 32, largest)
        keys = store.keys(0, 2)[:, : store.lengths[0] // 32 * 32]
        torch.testing.assert_close(got, keys.unflatten(1, (-1, 32)).amax(2))
    assert made == [TOKENS // 32, (TOKENS + 40) // 32 - TOKENS // 32]
    assert store.summaries.nbytes > 0 and store.fork().summaries.nbytes == 0
    store.truncate([10**6] * 4)
    assert store.summaries.nbytes == 0


@kinds
def test_where_pages_lie_does_not_matter(kind: str) -> None:
    store = filled(kind)
    before = read(store)
    store.permute_pages(torch.Generator().manual_seed(3))
    same(read(store), before)
    append(store, TOKENS, 3)
    store.truncate([TOKENS] * 4)
    same(read(store), before)


def test_one_level_has_no_coarser_one() -> None:
    store = filled("paged")
    store.demote([torch.zeros(TOKENS, dtype=torch.int64), None, None, None])
    with pytest.raises(SessionError, match="no coarser one"):
        store.demote([torch.ones(TOKENS, dtype=torch.int64)] * 4)
