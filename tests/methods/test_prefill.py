"""Hand-made cases of the prefill patterns: planted columns, diagonals and blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwise.attention.view import View
from headwise.forms import Scoring, Where, Window
from headwise.kernels.native.prefill import refuse
from headwise.methods.prefill.a_shape import AShape
from headwise.methods.prefill.block_sparse import BlockSparse
from headwise.methods.prefill.vertical_slash import VerticalSlashes
from headwise.registry import methods
from tests.methods.views import changed, granting, make_view

VERTICALS, SLASHES = (100, 300, 500), (450, 900)


def planted(n: int) -> View:
    """One head whose queries attend to three columns and, by a positional code, to two distances."""
    random = torch.Generator().manual_seed(0)
    turns = torch.rand(64, generator=random) * 3.1
    code = torch.cat(((torch.arange(n)[:, None] * turns).cos(), (torch.arange(n)[:, None] * turns).sin()), dim=1)
    queries, keys = torch.zeros(1, 1, n, 132), torch.zeros(1, n, 132)
    queries[..., :128] = code
    for distance in SLASHES:
        keys[:, : n - distance, :128] += code[distance:]
    keys *= 0.4
    queries[..., 130] = 1.0
    keys[:, VERTICALS, 130] = 25.0
    view = make_view(n, g=1, h=1, d=132)
    return changed(replace(view, scoring=Scoring(1.0)), keys=keys, queries=queries)


def blocks(where: Where, n: int) -> int:
    """64 x 64 blocks that a kernel would compute."""
    return int(where.dense(n, n).unflatten(1, (-1, 64)).unflatten(3, (-1, 64)).any(4).any(2).sum())


def mass(view: View, where: Where) -> float:
    """Share of the dense attention that the pattern keeps, mean over queries."""
    n = view.count
    return float((view.observe(n)[:, 0] * where.dense(n, n)).sum() / n)


def test_vertical_slash_keeps_planted_patterns_where_an_a_shape_of_equal_cost_does_not() -> None:
    view = planted(2048)
    found = VerticalSlashes(verticals=10, slashes=12, first=4, nearest=4)
    where = found.where(granting(view, found.view_needs))
    assert set(VERTICALS) <= set(where.verticals[0].tolist())
    assert set(SLASHES) <= set(where.slashes[0].tolist())
    assert mass(view, where) >= 0.95
    cost = blocks(where, 2048)
    window = 64
    while blocks(AShape(64, window + 64).where(view), 2048) <= cost:
        window += 64
    assert mass(view, AShape(64, window).where(view)) < 0.60


def test_vertical_slash_always_reads_the_first_tokens_and_the_nearest() -> None:
    where = VerticalSlashes(verticals=40, slashes=110).where(make_view(300))
    assert all(one.tolist()[:30] == list(range(30)) and len(one) == 40 for one in where.verticals)
    assert all(one.tolist()[:100] == list(range(100)) and len(one) == 110 for one in where.slashes)


def test_budgets_that_cover_everything_are_causal_attention() -> None:
    view = make_view(200, t=150)
    everything = torch.ones(150, 200, dtype=torch.bool).tril(50)
    for pattern in (AShape(), VerticalSlashes(), BlockSparse(blocks=4)):
        drawn = pattern.where(view).dense(150, 200)
        assert torch.equal(drawn, everything.expand_as(drawn)), pattern


def test_a_shape_is_window_and_sinks() -> None:
    assert AShape(4, 8).where(make_view(20)) == Window(7, 4)


def test_block_sparse_finds_the_block_of_planted_keys() -> None:
    view = make_view(512, h=2)
    keys, queries = 0.1 * view.keys, 0.1 * view.queries
    keys[0, 128:192, 3], queries[0, :, 448:, 3] = 2.0, 2.0
    keys[1, 192:256, 5], queries[1, :, 384:448, 5] = 2.0, 2.0
    drawn = BlockSparse(blocks=3, size=64).where(changed(view, keys=keys, queries=queries)).dense(512, 512)
    assert drawn[0, 500, :448].nonzero().flatten().tolist() == [*range(64), *range(128, 192)]
    assert drawn[1, 420, :384].nonzero().flatten().tolist() == [*range(64), *range(192, 256)]


def test_block_sparse_reads_its_own_tokens_when_a_chunk_starts_inside_a_block() -> None:
    drawn = BlockSparse(blocks=1, size=64).where(make_view(200, t=90)).dense(90, 200)
    own = torch.arange(110, 200)
    assert drawn[:, torch.arange(90), own].all()
    assert drawn[:, :, :64].all()


# calls made of pieces, each sent by itself; keys seen up to a query, which the reference reads; and blocks of queries
# and keys in any order, which plain torch takes out
NOT_NATIVE = ("hyper", "nats_prefill", "grid", "hip")


@pytest.mark.parametrize("name", [name for name in methods("prefill") if name not in NOT_NATIVE])
def test_what_a_pattern_draws_by_default_has_a_native_kernel(name: str) -> None:
    view = make_view(600)
    assert refuse(view.queries, methods("prefill")[name]().where(view), view.scoring) == []
