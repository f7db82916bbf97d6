"""Blocks of queries and keys in an order of their own, against textbook attention."""

from __future__ import annotations

import pytest
import torch

from headwise.attention import attend
from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Composite, Gathered, Piece, Scoring, Window
from tests.attention_cases import exact, qkv


def drawn(where: Gathered, t: int, n: int) -> torch.Tensor:
    """The form by its definition, pair by pair."""
    seen = torch.zeros(where.heads, t, n, dtype=torch.bool)
    for head in range(where.heads):
        for at, i in enumerate(where.queries[head].tolist()):
            for place, j in enumerate(where.keys[head].tolist()):
                distance = n - t + i - j
                read = place // where.width in where.columns[head, at // where.size].tolist() and distance >= 0
                if where.hidden is not None:
                    read = read and distance > where.hidden.left and j >= where.hidden.sinks
                seen[head, i, j] = read
    return seen


def random(t: int, n: int, size: int, width: int, hidden: Window | None = None) -> Gathered:
    made = torch.Generator().manual_seed(t + n)
    queries, keys = (torch.stack([torch.randperm(x, generator=made) for _ in range(2)]) for x in (t, n))
    map = torch.rand(2, -(-t // size), -(-n // width), generator=made) < 0.4
    return Gathered(queries, keys, Gathered.listed(map), size, width, hidden)


@pytest.mark.parametrize("hidden", [None, Window(3, sinks=2)])
@pytest.mark.parametrize(("t", "n", "size", "width"), [(1, 1, 4, 2), (33, 33, 8, 8), (20, 50, 6, 2), (17, 40, 32, 5)])
def test_it_reads_the_pairs_of_its_blocks(t: int, n: int, size: int, width: int, hidden: Window | None) -> None:
    where = random(t, n, size, width, hidden)
    shown = drawn(where, t, n)
    assert torch.equal(where.dense(t, n), shown)
    assert torch.equal(where.rows(t // 2, t, t, n), shown[:, t // 2 :])
    assert where.visible_pairs(t, n) == shown.sum() / 2
    for softcap in (None, 2.0):
        q, k, v = qkv(2, 3, t, n, 8, 6)
        got = attend(q, k, v, where, Scoring(0.3, softcap))
        out, lse, _ = exact(q, k, v, shown, 0.3, softcap)
        torch.testing.assert_close(got.out.double(), out, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.lse.double(), lse, atol=1e-5, rtol=1e-5)


def test_with_the_window_that_it_hides_it_is_one_call() -> None:
    near = Window(3, sinks=2)
    where = random(30, 40, 8, 4, near)
    whole = Composite((Piece(range(30), range(40), near), Piece(range(30), range(40), where)))
    shown = drawn(where, 30, 40) | near.dense(30, 40)
    assert torch.equal(whole.dense(30, 40), shown)
    q, k, v = qkv(2, 2, 30, 40)
    got = attend(q, k, v, whole, Scoring(0.3))
    torch.testing.assert_close(got.out.double(), exact(q, k, v, shown, 0.3)[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(HeadwiseError, match="count twice"):
        Composite((Piece(range(30), range(40), Window(4)), Piece(range(30), range(40), where)))


def test_keys_that_no_query_sees_may_be_nan() -> None:
    where = random(30, 40, 8, 4)
    q, k, v = qkv(2, 2, 30, 40)
    unseen = ~drawn(where, 30, 40).any(1)
    assert bool(unseen.any())
    clean = attend(q, k, v, where, Scoring(0.3)).out
    k[unseen], v[unseen] = torch.nan, torch.nan
    torch.testing.assert_close(attend(q, k, v, where, Scoring(0.3)).out, clean)


def test_lists_of_different_lengths_are_filled_up() -> None:
    map = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    assert Gathered.listed(map).tolist() == [[0, 2], [-1, -1], [1, -1]]
    assert Gathered.joined([Gathered.listed(map[:1]), Gathered.listed(map[2:])]).tolist() == [[0, 2], [1, -1]]
    assert Gathered.listed(torch.zeros(2, 3, dtype=torch.bool)).shape == (2, 0)


def test_what_is_no_order_is_refused() -> None:
    where = random(20, 20, 8, 4)
    with pytest.raises(ShapeError, match="keys must be an order of 21"):
        where.check(20, 21)
    with pytest.raises(ShapeError, match="each once"):
        Gathered(where.queries, where.keys.clamp(min=1), where.columns, 8, 4).check(20, 20)
    with pytest.raises(HeadwiseError, match="no block 9"):
        Gathered(where.queries, where.keys, where.columns.clamp(min=9), 8, 4).check(20, 20)
    with pytest.raises(ShapeError, match="Gathered needs"):
        Gathered(where.queries, where.keys, where.columns[:, :1], 8, 4)
    with pytest.raises(HeadwiseError, match="1 token or more"):
        Gathered(where.queries, where.keys, where.columns, 0, 4)
