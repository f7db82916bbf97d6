"""Levels of precision: what moves, what stays, and what groups of tokens that share numbers become as tokens leave."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from headwise.attention.attend import attend, attend_pages
from headwise.cache.extras import add_mass, mass
from headwise.cache.factory import new_store
from headwise.cache.grouped import GroupedStore, neighbours, spread
from headwise.cache.levelled import LevelledStore
from headwise.cache.shape import Shape
from headwise.errors import HeadwiseError
from headwise.forms import Causal, Full, Scoring

KIVI = (("plain", "plain"), ("channel2/32", "int2/32"))


def filled(tokens: int, lanes: int = 2, width: int = 64) -> tuple[LevelledStore, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    scales = torch.rand(width, generator=generator) * 4
    keys = torch.randn(lanes, tokens, width, generator=generator) * scales
    values = torch.randn(lanes, tokens, width, generator=generator)
    store = new_store(Shape(lanes, width, width, torch.bfloat16), KIVI)
    assert isinstance(store, LevelledStore)
    store.append(keys.bfloat16(), values.bfloat16(), torch.arange(tokens).repeat(lanes, 1))
    return store, keys.bfloat16(), values.bfloat16()


def test_only_whole_groups_move_and_the_order_of_reading_is_the_order_in_the_text() -> None:
    store, keys, _ = filled(300)
    store.demote([torch.ones(300).long() * (torch.arange(300) < 172), None])
    assert [part.lengths for part in store.parts] == [[140, 300], [160, 0]]
    assert store.runs() == [(0, 1), (1, 2)]
    for lane in (0, 1):
        assert store.positions(lane).tolist() == list(range(300))
    assert torch.equal(store.segment(0, 1).keys[0, 160:], keys[0, 160:])
    assert not torch.equal(store.segment(0, 1).keys[0, :160], keys[0, :160])
    assert torch.equal(store.segment(1, 2).keys[0], keys[1])


def test_two_bit_groups_take_what_is_predicted_and_a_quarter_of_dense() -> None:
    store, keys, values = filled(2048 + 128)
    store.demote([(torch.arange(2176) < 2048).long()] * 2)
    assert store.nbytes == store.predicted([(128, 2048)] * 2)
    assert store.parts[1].nbytes <= 0.25 * (keys[:, :2048].nbytes + values[:, :2048].nbytes)


def test_tokens_leave_groups_and_the_others_stay_as_they_were_until_groups_join() -> None:
    store, _, _ = filled(128, lanes=1)
    store.demote([torch.ones(128).long()])
    before = store.segment(0, 1).keys[0]
    chosen = torch.cat((torch.arange(0, 30), torch.arange(40, 60), torch.arange(64, 66), torch.arange(100, 128)))
    store.keep([chosen])
    part = store.parts[1]
    assert isinstance(part, GroupedStore)
    assert part.sizes == [[30, 22, 28]]
    after = store.segment(0, 1).keys[0]
    assert torch.equal(after[:30], before[chosen[:30]])
    assert torch.equal(after[52:], before[chosen[52:]])
    assert after[30:52].sub(before[chosen[30:52]]).abs().max() > 0


def test_rounding_does_not_pile_up_over_a_long_generation() -> None:
    """4000 tokens pass through a cache of about 256, those that go drawn at random; every survivor was rounded a few
    times. Measured: 1.09 times a single rounding's error."""
    generator = torch.Generator().manual_seed(0)
    store = new_store(Shape(1, 64, 64, torch.float32), KIVI)
    assert isinstance(store, LevelledStore)
    keys = torch.randn(1, 4096, 64, generator=generator) * (torch.rand(64, generator=generator) * 4)
    for start in range(0, 4096, 64):
        block = slice(start, start + 64)
        store.append(keys[:, block], keys[:, block], torch.arange(4096)[None, block])
        stored = store.lengths[0]
        if stored > 256:
            store.keep([torch.randperm(stored, generator=generator)[:256].sort().values])
        store.demote([(store.positions(0) < start).long()])
    held = store.parts[1].segment(0, 1)
    error = (held.keys[0] - keys[0, held.positions[0].long()]).norm() / held.keys.norm()
    once = new_store(Shape(1, 64, 64, torch.float32), KIVI)
    assert isinstance(once, LevelledStore)
    once.append(keys, keys, torch.arange(4096)[None])
    once.demote([torch.ones(4096).long()])
    single = (once.segment(0, 1).keys[0] - keys[0]).norm() / keys.norm()
    print(f"error {float(error):.3f}, of one rounding {float(single):.3f}")
    assert error < 1.5 * single
    sizes = store.parts[1].sizes[0]
    assert all(a + b > 32 for a, b in pairwise(sizes))
    assert store.nbytes <= 1.35 * store.predicted([(store.parts[0].lengths[0], store.parts[1].lengths[0])])


def test_groups_follow_truncate_state_and_fork() -> None:
    store, _, _ = filled(200, lanes=2)
    store.demote([(torch.arange(200) < 160).long()] * 2)
    other = new_store(store.shape, KIVI)
    other.restore(store.state())
    fork = store.fork()
    store.truncate([100, 170])
    assert [part.lengths for part in store.parts] == [[0, 10], [100, 160]]
    for copy in (other, fork):
        assert copy.lengths == [200, 200]
        assert torch.equal(copy.segment(0, 2).keys[0, :100], store.segment(0, 1).keys[0])
        assert torch.equal(copy.segment(0, 2).keys[1, :170], store.segment(1, 2).keys[0])


def test_mass_moves_with_its_tokens() -> None:
    store = new_store(Shape(1, 8, 8, torch.float32, with_mass=True), (("plain", "plain"), ("int8", "int8")))
    assert isinstance(store, LevelledStore)
    store.append(torch.randn(1, 20, 8), torch.randn(1, 20, 8), torch.arange(20)[None])
    add_mass(store, 0, torch.arange(20.0))
    store.demote([(torch.arange(20) % 2).long()])
    add_mass(store, 0, torch.ones(20))
    assert store.positions(0).tolist() == list(range(20))
    assert mass(store, 0, 1)[0].tolist() == [x + 1.0 for x in range(20)]


def test_what_lies_at_mixed_levels_is_read_kept_and_cut_back_in_the_order_of_positions() -> None:
    """Tokens come down in any order: an old one may follow a younger one to a coarser level."""
    store = new_store(Shape(2, 8, 8, torch.float32), (("plain", "plain"), ("int8", "int8")))
    assert isinstance(store, LevelledStore)
    keys = torch.arange(40.0)[:, None].expand(2, 40, 8)
    store.append(keys, keys, torch.arange(40).repeat(2, 1))
    store.demote([(torch.arange(40) % 3 == 0).long(), (torch.arange(40) >= 26).long()])
    store.demote([(torch.arange(40) == 4).long(), None])
    assert store.parts[1].positions(0).tolist() == [*range(0, 40, 3), 4]
    assert store.levels(0, 1)[0].tolist() == [int(i % 3 == 0 or i == 4) for i in range(40)]
    torch.testing.assert_close(store.segment(0, 1).keys[0, :, 0], torch.arange(40.0), atol=0.2, rtol=0)
    chosen = torch.tensor([1, 3, 4, 5, 30, 33, 39])
    store.keep([chosen, chosen])
    other = store.fork()
    store.truncate([5, 34])
    assert [store.positions(lane).tolist() for lane in (0, 1)] == [[1, 3, 4], [1, 3, 4, 5, 30, 33]]
    torch.testing.assert_close(store.segment(1, 2).keys[0, :, 0], chosen[:6].float(), atol=0.2, rtol=0)
    assert other.positions(0).tolist() == chosen.tolist()


@pytest.mark.parametrize("tokens", [1, 5])
def test_several_new_tokens_read_level_by_level_what_one_piece_says(tokens: int) -> None:
    store = new_store(Shape(2, 8, 8, torch.float32), (("plain", "plain"), ("int8", "int8")))
    assert isinstance(store, LevelledStore)
    keys, values, queries = torch.randn(2, 40, 8), torch.randn(2, 40, 8), torch.randn(2, 3, tokens, 8)
    store.append(keys, values, torch.arange(40).repeat(2, 1))
    store.demote([((torch.arange(40) > 3) & (torch.arange(40) < 30)).long()] * 2)
    pieces = list(store.pieces(0, 2, Causal(), tokens))
    assert [type(where) for _, _, where in pieces] == [Causal, Full]
    first, second = (attend_pages(queries, paged, where, Scoring(0.3)) for _, paged, where in pieces)
    first += second
    segment = store.segment(0, 2)
    expected = attend(queries, segment.keys, segment.values, Causal(), Scoring(0.3))
    torch.testing.assert_close(first.out, expected.out)
    torch.testing.assert_close(first.lse, expected.lse)


def test_joining_neighbours_leaves_no_two_that_fit_together() -> None:
    assert neighbours([32, 1, 0, 3, 30, 2], 32) == [[0], [1, 3], [4, 5]]
    assert neighbours([], 32) == [] and neighbours([0, 0], 32) == []
    assert spread(torch.arange(2.0)[:, None, None], [2, 1]).flatten().tolist() == [0, 0, 1]


def test_shared_numbers_need_a_finer_level_before_them() -> None:
    for levels in ((("channel2/32", "int2/32"),), (("plain", "plain"), ("int8", "channel2/32"))):
        with pytest.raises(HeadwiseError, match="share numbers"):
            new_store(Shape(1, 8, 8, torch.float32), levels)


def test_values_are_replaced_by_their_place_in_the_text_whatever_level_they_lie_at() -> None:
    values = torch.randn(2, 100, 64)
    store = new_store(Shape(2, 64, 64, torch.float32), [("plain", "plain"), ("int8", "int8")])
    assert isinstance(store, LevelledStore)
    store.append(torch.randn(2, 100, 64), values, torch.arange(100).repeat(2, 1))
    coarse = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:40]
    store.demote([torch.zeros(100).long().index_fill(0, coarse, 1)] * 2)
    entries, new = torch.arange(3, 100, 9), torch.randn(11, 64)
    store.revalue(1, entries, new)
    expected = values.clone()
    expected[1, entries] = new
    torch.testing.assert_close(store.segment(0, 2).values, expected, atol=0.03, rtol=0)  # half a step of 8 bits
