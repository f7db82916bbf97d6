"""Hand-made cases of the eviction methods; that each equals its slow truth is the contract suite's part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.choose import choose
from headwise.errors import HeadwiseError
from headwise.methods.evict.expected_attention import ExpectedAttention
from headwise.methods.evict.h2o import H2O
from headwise.methods.evict.keydiff import KeyDiff
from headwise.methods.evict.l2norm import L2Norm
from headwise.methods.evict.random import Random
from headwise.methods.evict.snapkv import SnapKV
from headwise.methods.evict.streaming import Streaming
from headwise.shapes import Rope
from tests.methods.views import changed, make_view, rope


def test_streaming_keeps_sinks_and_the_latest() -> None:
    view = make_view(100)
    method = Streaming(20, sinks=4, recent=8)
    kept = choose(method.score(view), 20, method.protect(view))
    assert kept[0].tolist() == [0, 1, 2, 3, *range(84, 100)]


def test_random_is_uniform_independent_by_head_and_the_same_in_every_view() -> None:
    view = make_view(4000, h=3)
    scores = Random().score(view)
    assert abs(float(scores.mean()) - 0.5) < 0.02
    assert torch.corrcoef(scores).triu(1).abs().max() < 0.05
    assert abs(float(torch.corrcoef(torch.stack((scores[0, 1:], scores[0, :-1])))[0, 1])) < 0.05
    part = replace(view, heads=(2,), positions=view.positions[2:, 100:200], granted={})
    assert torch.equal(Random().score(part)[0], scores[2, 100:200])
    for other in (replace(view, seed=1), replace(view, layer=4)):
        assert not torch.equal(Random().score(other), scores)


def test_l2norm_keeps_the_lowest_norms_before_and_after_any_query() -> None:
    view = make_view(64)
    keys = view.keys / view.keys.norm(dim=-1, keepdim=True) * torch.arange(64, 0, -1)[None, :, None]
    view = changed(view, keys=keys)
    method = L2Norm(16, sinks=0, recent=0)
    assert choose(method.score(view), 16, method.protect(view))[1].tolist() == list(range(48, 64))
    later = changed(replace(view, seen=80), queries=torch.randn(2, 2, 16, 16))
    assert torch.equal(method.score(view), method.score(later))


def test_l2norm_leaves_the_first_layers_whole() -> None:
    assert [L2Norm().governs(layer) for layer in range(4)] == [False, False, True, True]
    assert L2Norm(skip_layers=0).governs(0)
    with pytest.raises(HeadwiseError, match="skip_layers"):
        L2Norm(skip_layers=-1)


def test_keydiff_keeps_the_odd_key_out() -> None:
    view = make_view(50)
    keys = torch.ones(2, 50, 16) + 0.01 * view.keys
    keys[0, 17], keys[1, 31] = -3.0, -0.1
    scores = KeyDiff().score(changed(view, keys=keys))
    assert scores.argmax(1).tolist() == [17, 31]


def test_h2o_splits_the_budget_between_heavy_hitters_and_recent_tokens() -> None:
    mass = torch.zeros(2, 100)
    mass[0, [11, 22, 33]], mass[1, [44, 55, 66]] = 5.0, 5.0
    view = changed(make_view(100), mass=mass)
    method = H2O(10, sinks=0, recent=0, local=0.7)
    kept = choose(method.score(view), 10, method.protect(view))
    assert kept[0].tolist() == [11, 22, 33, *range(93, 100)]
    assert kept[1].tolist() == [44, 55, 66, *range(93, 100)]
    no_local = H2O(3, sinks=0, recent=0, local=0.0)
    assert choose(no_local.score(view), 3, no_local.protect(view))[0].tolist() == [11, 22, 33]


def test_snapkv_finds_what_the_last_queries_look_for_and_its_neighbours() -> None:
    view = make_view(200)
    keys, queries = view.keys.clone(), view.queries.clone()
    queries[:, :, -32:] = 4.0
    keys[0, 90], keys[1, 120] = 4.0, 4.0
    method = SnapKV(40, window=32, kernel=5, sinks=0, recent=0)
    scores = method.score(changed(view, keys=keys, queries=queries))
    assert scores[:, 168:].isposinf().all()
    assert not scores[:, :168].isposinf().any()
    assert scores[0, :168].argsort(descending=True)[:5].sort().values.tolist() == [88, 89, 90, 91, 92]
    assert scores[1, :168].argsort(descending=True)[:5].sort().values.tolist() == [118, 119, 120, 121, 122]


def test_snapkv_votes_with_the_queries_there_are() -> None:
    view = make_view(100, t=3)
    assert SnapKV().score(view).isposinf().sum(1).tolist() == [3, 3]
    for wrong in ({"kernel": 4}, {"kernel": 0}, {"window": 0}):
        with pytest.raises(HeadwiseError):
            SnapKV(**wrong)


def test_expected_attention_equals_the_monte_carlo_mean_for_gaussian_queries() -> None:
    view = make_view(40)
    random = torch.Generator().manual_seed(4)
    mix = torch.randn(2, 2, 16, 16, generator=random) / 6
    centre = torch.randn(2, 2, 1, 16, generator=random) / 2

    def draw(count: int) -> torch.Tensor:
        return torch.randn(2, 2, count, 16, generator=random) @ mix + centre

    fitted = changed(view, queries=draw(200_000), query_positions=torch.arange(4, 200_004))
    queries = draw(200_000).double() @ view.keys.double().mT[:, None] * view.scale
    ratio = ExpectedAttention().raw_score(fitted).exp() / queries.exp().mean(2)
    assert ((ratio - 1).abs() < 0.05).all()


@pytest.mark.parametrize("turn", [rope(16), rope(16, interleaved=True), rope(8), rope(16, scale=1.2)])
def test_mean_rotation_is_the_mean_of_the_rotations(turn: Rope) -> None:
    x = torch.randn(16)
    turned = torch.stack([turn.rotate(x, torch.tensor(50 + i)) for i in range(32)])
    torch.testing.assert_close(turn.mean(50, 32, 16) @ x, turned.mean(0))


@pytest.mark.parametrize("turn", [rope(16), rope(16, interleaved=True), rope(8), rope(16, scale=1.2)])
def test_expected_attention_undoes_the_rotation_of_the_queries(turn: Rope) -> None:
    view = make_view(60, turn=turn)
    same = torch.randn(2, 2, 1, 16).expand(2, 2, 60, 16)
    rotated = changed(view, queries=turn.rotate(same, torch.arange(60)))
    expected = turn.rotate(same[:, :, 0], torch.tensor(60))
    raw = ExpectedAttention(future=1).raw_score(rotated)
    torch.testing.assert_close(raw, expected @ view.keys.mT * view.scale, atol=1e-4, rtol=1e-4)


def test_expected_attention_leaves_sinks_out_of_its_statistics() -> None:
    view = make_view(60)
    queries = view.queries.clone()
    queries[:, :, :4] = 1e4
    method = ExpectedAttention()
    assert torch.equal(method.score(changed(view, queries=queries)), method.score(view))
    assert method.score(make_view(3)).isfinite().all()
