"""Hand-made cases of the static patterns and of those that estimate attention by blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from headwise.attention.view import View
from headwise.forms import Scoring, Where
from headwise.methods.prefill import hip
from headwise.methods.prefill.bigbird import BigBird
from headwise.methods.prefill.block_local import BlockLocal
from headwise.methods.prefill.block_sparse import BlockSparse
from headwise.methods.prefill.dilated import Dilated
from headwise.methods.prefill.flex_prefill import FlexPrefill
from headwise.methods.prefill.hip import Hip
from headwise.methods.prefill.power import Power
from headwise.methods.prefill.s2 import S2
from headwise.methods.prefill.strided import Strided
from headwise.methods.prefill.xattention import XAttention
from headwise.methods.prefill.zipvl import ZipVL
from tests.methods.views import changed, make_view


def layers_to_reach_all(where: Where, n: int) -> int | None:
    """Layers after which the last query depends on every token before it; None when it never does."""
    step = where.dense(n, n)[0].double()
    reached, layers = torch.zeros(n, dtype=torch.double), 0
    reached[-1] = 1
    while not reached.bool().all():
        further = ((reached @ step) > 0).double()
        if torch.equal(further, reached):
            return None
        reached, layers = further, layers + 1
    return layers


def test_power_reaches_exponentially_where_a_window_of_equal_rows_reaches_linearly() -> None:
    n, view = 512, make_view(512, h=1)
    power = Power(first=0, nearest=2).where(view)
    row = int(power.dense(n, n)[0].sum(1).max())
    assert row <= 2 + 9
    assert layers_to_reach_all(power, n) == 9  # 511 is the sum of nine powers of two, no distance needs more
    window = Dilated(nearest=row, gap=1, reach=1).where(view)
    assert layers_to_reach_all(window, n) == -(-511 // (row - 1))
    assert layers_to_reach_all(Dilated(nearest=1, gap=2, reach=n).where(view), n) is None, "odd distances"


def test_strided_reads_its_window_and_every_stride_th_token() -> None:
    drawn = Strided(8).where(make_view(50, h=1)).dense(50, 50)[0]
    assert drawn[49].nonzero()[:, 0].tolist() == [1, 9, 17, 25, 33, 41, *range(42, 50)]


def test_the_shards_of_s2_make_up_every_causal_block() -> None:
    view = make_view(200, h=4)
    drawn = S2(stride=4, local=1, size=10).where(view).dense(200, 200)
    assert torch.equal(drawn.any(0), torch.ones(200, 200, dtype=torch.bool).tril())
    assert all(float(head.float().mean()) < 0.2 for head in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    again = S2(stride=4, local=1, size=10).where(make_view(200, t=100, h=4)).dense(100, 200)
    assert torch.equal(again, drawn[:, 100:]), "the shards lie at absolute positions"


def test_s2_never_needs_again_what_it_once_left() -> None:
    """So a head can drop what lies outside its shard and window: block j is read by a stretch of blocks, or by all."""
    drawn = S2(stride=4, local=2, size=10).where(make_view(200, h=4)).dense(200, 200)
    columns = drawn.unflatten(1, (20, 10)).any(2).unflatten(2, (20, 10)).any(3)
    for head in columns:
        for j in range(20):
            reads = head[j:, j].int()
            assert (reads.diff() <= 0).all()


def test_block_local_and_bigbird_read_the_blocks_they_name() -> None:
    view = make_view(400, h=2)
    local = BlockLocal(size=100, before=1).where(view).dense(400, 400)[0]
    assert local[399].nonzero()[:, 0].tolist() == list(range(200, 400))
    drawn = BigBird(first=1, local=0, drawn=2, size=20).where(view).dense(400, 400)
    blocks = drawn.unflatten(1, (20, 20)).any(2).unflatten(2, (20, 20)).any(3)[0]
    assert blocks[:, 0].all() and blocks.diagonal().all()
    assert blocks.sum(1).tolist() == [min(i + 1, 4) for i in range(20)]
    other = BigBird(first=1, local=0, drawn=2, size=20).where(replace(view, seed=1)).dense(400, 400)
    assert not torch.equal(drawn, other)


def blocky(n: int, size: int) -> View:
    """Queries of block i look for block i // 2, wherever it is, in a channel of its own; plus noise."""
    view = make_view(n, h=1, d=2 * n // size)
    keys, queries = 0.1 * view.keys, 0.1 * view.queries
    for i in range(n // size):
        keys[0, i * size : (i + 1) * size, i] += 4.0
        queries[0, :, i * size : (i + 1) * size, i // 2] += 4.0
    return changed(replace(view, scoring=Scoring(1.0)), keys=keys, queries=queries)


@pytest.mark.parametrize(
    "method",
    [
        XAttention(0.97, stride=4, size=16),
        FlexPrefill(0.97, tau=1.0, least=1, size=16),
        BlockSparse(blocks=4, size=16),
    ],
    ids=lambda method: method.name,
)
def test_block_patterns_find_the_blocks_that_queries_look_for(method: object) -> None:
    view = blocky(512, 16)
    where = method.where(view)
    kept = (view.observe(512)[:, 0] * where.dense(512, 512)).sum(-1).mean()
    assert float(kept) >= 0.95
    assert where.density(512, 512) < 0.4


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("mass", [0.5, 0.9, 1.0])
def test_flex_prefill_keeps_its_share_of_the_probed_attention(mass: float, tau: float) -> None:
    method = FlexPrefill(mass, tau=tau, least=1, size=16)
    for seed in range(3):
        view = make_view(300, t=200, seed=seed)
        where = method.where(view)
        probed = view.observe(16).mean(1)
        kept = (probed * where.dense(200, 300)[:, -16:]).sum((1, 2)) / 16
        if tau == 0.0:
            assert (kept >= mass - 1e-5).all()
        if mass == 1.0:
            assert where.density(200, 300) == 1.0
        assert torch.equal(where.dense(200, 300), method.plain(view).dense(200, 300))


def test_flex_prefill_reads_less_in_heads_that_attend_sharply() -> None:
    view = make_view(1024, h=2)
    keys, queries = 0.1 * view.keys, 0.1 * view.queries
    keys[1, 100:130, 3], queries[1, ..., 3] = 6.0, 6.0
    drawn = FlexPrefill(0.9, least=1, size=32).where(changed(view, keys=keys, queries=queries)).dense(1024, 1024)
    assert float(drawn[1].float().mean()) < 0.7 * float(drawn[0].float().mean())


def test_zipvl_reads_more_tokens_where_attention_is_spread() -> None:
    view = make_view(600, h=1)
    counts = []
    for sharpness in (0.1, 1.0, 4.0):
        where = ZipVL(0.9, least=1).where(changed(view, queries=sharpness * view.queries))
        counts.append(len(where.verticals[0]))
    assert counts[0] > counts[1] > counts[2]
    whole = ZipVL(1.0).where(view).dense(600, 600)
    assert torch.equal(whole[0], torch.ones(600, 600, dtype=torch.bool).tril())


def test_hip_with_room_for_everything_is_causal() -> None:
    drawn = Hip(keep=512, size=16).where(make_view(300, t=200)).dense(200, 300)
    assert torch.equal(drawn, torch.ones(200, 300, dtype=torch.bool).tril(100).expand(2, -1, -1))


def test_hip_finds_the_best_keys_of_a_hill_and_scores_few() -> None:
    """A halving search finds what lies among its like. What it scores grows with the logarithm of the prompt's length;
    of the keys of a prompt of 4,096 it scores a fifth."""
    scored = {}
    for n in (1024, 2048, 4096):
        view, counts = make_view(n, h=1, g=1), []
        keys, queries = 0.1 * view.keys, 0.1 * view.queries
        keys[0, :600] += 4 * (1 - (torch.arange(600) - 300).abs()[:, None] / 300)
        queries[0, 0, -5] = 4.0
        real = hip._maxima

        def counted(
            q: torch.Tensor, k: torch.Tensor, leaf: torch.Tensor, counts: list[int] = counts, real: Any = real
        ) -> torch.Tensor:
            counts.append(leaf.numel())
            return real(q, k, leaf)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hip, "_maxima", counted)
            where = Hip(keep=64).where(changed(view, keys=keys, queries=queries))
        read = where.dense(n, n)[0, -1].nonzero()[:, 0].tolist()
        assert set(range(290, 311)) <= set(read)
        assert len(read) <= 64 + 32 + 5 * 32
        scored[n] = sum(counts) / (n / 32)
    assert scored[4096] - scored[2048] == pytest.approx(scored[2048] - scored[1024], rel=0.1), scored
    assert scored[4096] * 2 < 4096 / 5
