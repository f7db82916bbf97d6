"""Calls made of pieces, and blocks of queries in any order, against textbook attention."""

from __future__ import annotations

import math

import pytest
import torch

from headwise.attention import attend
from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Buckets, Causal, Composite, Full, Piece, Scoring, Tokens
from headwise.kernels.dispatch import noted
from tests.attention_cases import exact, qkv


def codes(h: int, g: int, t: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(t + n)
    return torch.randint(8, (h, g, t), generator=made), torch.randint(8, (h, n), generator=made)


@pytest.mark.parametrize(("t", "n", "size"), [(1, 1, 1), (7, 30, 8), (30, 7, 2), (64, 64, 16), (33, 50, 64)])
def test_blocks_of_equal_rank_share_queries_and_keys_evenly(t: int, n: int, size: int) -> None:
    """Every query reads one block of keys, every key is read by one block of queries of each head."""
    asked, kept = codes(2, 3, t, n)
    buckets = Buckets.of_codes(asked, kept, size)
    blocks = buckets.keys.shape[1]
    assert blocks == min(-(-n // size), t)
    for head in range(2):
        order = kept[head].argsort(stable=True).tolist()
        for g in range(3):
            ranked, alone = (
                asked[head, g].argsort(stable=True).tolist(),
                Buckets(buckets.queries[head, g, None, None], buckets.keys[head, None], buckets.bias[head, None]),
            )
            expected = torch.zeros(t, n, dtype=torch.bool)
            for b in range(blocks):
                read = order[b * n // blocks : (b + 1) * n // blocks]
                for i in ranked[b * t // blocks : (b + 1) * t // blocks]:
                    expected[i, read] = True
            assert torch.equal(alone.dense(t, n)[0], expected)
            assert alone.visible_pairs(t, n) == expected.sum()
    together = buckets.dense(t, n)
    assert torch.equal(buckets.rows(t // 2, t, t, n), together[:, t // 2 :])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("t", "n"), [(40, 40), (17, 90)])
def test_buckets_with_a_sample_equal_attention_with_their_biases(t: int, n: int, softcap: float | None) -> None:
    q, k, v = qkv(2, 2, t, n, 8, 6)
    sample = torch.tensor([0, 3, n - 1])
    buckets = Buckets.of_codes(*codes(2, 2, t, n), 16).sampled(sample, n)
    got = attend(q, k, v, buckets, Scoring(0.3, softcap))
    scores = torch.einsum("hgtd,hnd->hgtn", q.double(), k.double()) * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    for head in range(2):
        for g in range(2):
            for b in range(buckets.keys.shape[1]):
                own = buckets.keys[head, b, : -len(sample)].unique()
                others = sample[~torch.isin(sample, own)]
                for i in buckets.queries[head, g, b].tolist():
                    row = scores[head, g, i]
                    weighed = torch.cat((row[own], row[others] + math.log(n / 3)))
                    out = weighed.softmax(0) @ v[head].double()[torch.cat((own, others))]
                    torch.testing.assert_close(got.out[head, g, i].double(), out, atol=1e-5, rtol=1e-5)
                    assert float(got.lse[head, g, i]) == pytest.approx(float(weighed.logsumexp(0)), abs=1e-5)


def test_a_sample_of_all_keys_is_dense_attention() -> None:
    q, k, v = qkv(2, 2, 30, 50)
    all_read = Buckets.of_codes(*codes(2, 2, 30, 50), 16).sampled(torch.arange(50), 50)
    got, full = attend(q, k, v, all_read, Scoring(0.3)), attend(q, k, v, Full(), Scoring(0.3))
    torch.testing.assert_close(got.out, full.out)
    torch.testing.assert_close(got.lse, full.lse)


def test_samples_estimate_the_sum_of_exponentials_without_bias() -> None:
    """Mean over 400 samples of 8 of 64 keys, within four of its standard errors for every query."""
    q, k, v = qkv(1, 1, 32, 64)
    buckets, made = Buckets.of_codes(*codes(1, 1, 32, 64), 16), torch.Generator().manual_seed(0)
    sums = torch.stack(
        [
            attend(q, k, v, buckets.sampled(torch.randperm(64, generator=made)[:8], 64), Scoring(0.3)).lse.exp()
            for _ in range(400)
        ]
    )
    true = attend(q, k, v, Full(), Scoring(0.3)).lse.exp()
    assert ((sums.mean(0) - true).abs() < 4 * sums.std(0) / 20).all()
    assert (sums.std(0) > 0).all()


def test_keys_that_are_not_read_may_be_nan() -> None:
    q, k, v = qkv(1, 1, 8, 20)
    asked, kept = codes(1, 1, 8, 20)
    buckets = Buckets.of_codes(asked, kept, 5)
    spoiled = Buckets(buckets.queries, buckets.keys, buckets.bias.clone())
    spoiled.bias[0, 0, 1:] = -torch.inf
    left = buckets.keys[0, 0, 1:]
    k[0, left], v[0, left] = torch.nan, torch.nan
    assert attend(q, k, v, spoiled, Scoring(0.3)).out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pieces_that_cover_a_triangle_are_causal_attention(dtype: torch.dtype) -> None:
    q, k, v = qkv(2, 2, 40, 60, dtype=dtype)
    parts = (
        Piece(range(40), range(20), Full()),
        Piece(range(15), range(20, 35), Causal()),
        Piece(range(15, 40), range(20, 35), Full()),
        Piece(range(15, 40), range(35, 60), Causal()),
    )
    where = Composite(parts)
    assert torch.equal(where.dense(40, 60), Causal().dense(40, 60))
    assert torch.equal(where.rows(10, 20, 40, 60), Causal().dense(40, 60)[:, 10:20])
    assert where.density(40, 60) == 1.0
    with noted() as records:
        got = attend(q, k, v, where, Scoring(0.3))
    out, lse, _ = exact(q, k, v, Causal().dense(40, 60).expand(2, -1, -1), 0.3)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got.out.double(), out, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(got.lse.double(), lse, atol=1e-4, rtol=1e-4)
    alone = {record.backend for record in records}
    assert "reference" not in alone
    mixed = Composite((parts[1], Piece(range(40), range(20), Buckets.of_codes(*codes(2, 2, 40, 20), 8))))
    with noted() as records:
        attend(q, k, v, mixed, Scoring(0.3))
    assert {record.backend for record in records} == {"reference", *alone}


def test_queries_in_no_piece_read_nothing() -> None:
    q, k, v = qkv(1, 1, 10, 10)
    got = attend(q, k, v, Composite((Piece(range(4), range(4), Causal()),)), Scoring(0.3))
    assert not got.out[:, :, 4:].any()
    assert (got.lse[:, :, 4:] == -torch.inf).all()


def test_bad_forms_are_refused_with_the_value() -> None:
    with pytest.raises(HeadwiseError, match="share pairs"):
        Composite((Piece(range(4), range(9), Full()), Piece(range(3, 6), range(8, 10), Full())))
    with pytest.raises(ShapeError, match=r"range\(0, 9\)"):
        Composite((Piece(range(4), range(9), Full()),)).check(4, 8)
    with pytest.raises(ShapeError, match="keys after"):
        Composite((Piece(range(4), range(8), Full()),)).check(6, 8)
    with pytest.raises(HeadwiseError, match="among 0 to 3"):
        Buckets.of_codes(*codes(1, 1, 8, 20), 5).check(4, 20)
    with pytest.raises(ShapeError, match="Buckets needs"):
        Buckets(torch.zeros(1, 1, 2, 3).long(), torch.zeros(1, 3, 2).long(), torch.zeros(1, 3, 2))
    with pytest.raises(ShapeError, match="different numbers of heads"):
        Composite(
            (
                Piece(range(4), range(4), Tokens([torch.tensor([0])])),
                Piece(range(4), range(4, 8), Tokens([torch.tensor([0])] * 2)),
            )
        )
