from itertools import pairwise

import pytest
import torch

from headwise.attention import attend
from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Attended, Full, Scoring, join
from tests.attention_cases import exact, qkv


def pieces(q, k, v, cuts, scale):
    """Attention over each stretch of keys between the cuts; equal cuts make an empty part."""
    return [attend(q, k[:, a:b], v[:, a:b], Full(), Scoring(scale)) for a, b in pairwise(cuts)]


@pytest.mark.parametrize("cuts", [(0, 40, 100), (0, 1, 50, 50, 100), (0, 5, 5, 20, 21, 60, 99, 99, 100)])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_parts_add_up_to_the_whole(cuts, size: float) -> None:
    q, k, v = qkv(2, 3, 4, 100)
    q = q * size / k.norm(dim=-1).max()  # logits up to about +-size
    out, lse, _ = exact(q, k, v, torch.ones(2, 4, 100, dtype=torch.bool), 1.0)
    parts = pieces(q, k, v, cuts, 1.0)
    assert len(parts) == len(cuts) - 1
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    for got in (total, join(parts), join(parts[::-1])):
        # a float32 score of 1e4 is itself only good to about 1e-3
        torch.testing.assert_close(got.out.double(), out, atol=1e-6 if size == 1 else 2e-3, rtol=1e-5)
        torch.testing.assert_close(got.lse.double(), lse, atol=1e-5, rtol=1e-6)


def test_extreme_log_sums_neither_overflow_nor_vanish() -> None:
    ones = torch.ones(1, 1, 1, 2)
    high, low = Attended(ones, torch.full((1, 1, 1), 1e4)), Attended(-ones, torch.full((1, 1, 1), -1e4))
    for got in (high + low, low + high):
        assert torch.equal(got.out, ones)
        assert got.lse.item() == 1e4
    even = high + Attended(-ones, high.lse)
    torch.testing.assert_close(even.out, torch.zeros_like(ones))
    assert even.lse.item() == pytest.approx(1e4 + 0.6931, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_empty_is_the_zero_of_addition(dtype: torch.dtype) -> None:
    q, k, v = qkv(2, 2, 3, 9, dtype=dtype)
    some, none = attend(q, k, v, Full(), Scoring(0.4)), Attended.empty(q, v.shape[-1])
    for got in (some + none, none + some, none + some + none):
        assert torch.equal(got.out, some.out)
        assert torch.equal(got.lse, some.lse)
        assert got.out.dtype == dtype
    nothing = none + none
    assert torch.equal(nothing.out, torch.zeros_like(some.out))
    assert bool((nothing.lse == float("-inf")).all())
    assert nothing.lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_adding_does_not_change_its_sides() -> None:
    q, k, v = qkv(1, 2, 2, 8)
    a, b = pieces(q, k, v, (0, 3, 8), 0.3)
    before = [x.clone() for x in (a.out, a.lse, b.out, b.lse)]
    assert a + b is not a
    assert all(torch.equal(x, y) for x, y in zip(before, (a.out, a.lse, b.out, b.lse), strict=True))


def test_nan_is_not_washed_out() -> None:
    one = Attended(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1))
    broken = Attended(torch.full((1, 1, 1, 2), float("nan")), torch.full((1, 1, 1), float("nan")))
    assert bool((one + broken).out.isnan().all())
    assert bool((broken + one).lse.isnan().all())


def test_gradients_flow_through_the_sum() -> None:
    q, k, v = (x.double().requires_grad_() for x in qkv(1, 2, 2, 6, d=3))

    def split(q, k, v):
        return join(pieces(q, k, v, (0, 2, 6), 0.5)).out

    assert torch.autograd.gradcheck(split, (q, k, v))


def test_different_queries_and_nothing_are_refused() -> None:
    q, k, v = qkv(1, 2, 3, 8)
    with pytest.raises(ShapeError, match="same queries"):
        attend(q, k, v, Full(), Scoring(1.0)) + attend(q[:, :1], k, v, Full(), Scoring(1.0))
    with pytest.raises(HeadwiseError, match="no parts"):
        join(())
