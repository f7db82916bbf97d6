"""Scores become a choice in one place: exactly as many, the best, and never without the protected ones."""

from __future__ import annotations

import pytest
import torch

from headwise.choose import choose, choose_mask, enough, likeliest
from headwise.errors import HeadwiseError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_takes_the_best_and_returns_them_ascending(dtype: torch.dtype) -> None:
    scores = torch.tensor([[3.0, 9.0, 1.0, 7.0, 5.0], [5.0, 1.0, 2.0, 3.0, 4.0]], dtype=dtype)
    chosen = choose(scores, torch.tensor([2, 3]), torch.zeros(2, 5, dtype=torch.bool))
    assert [one.tolist() for one in chosen] == [[1, 3], [0, 3, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", [0.0, 1e4, float("inf"), float("-inf")])
def test_protection_survives_ties_infinities_and_short_types(dtype: torch.dtype, fill: float) -> None:
    scores = torch.full((2, 1000), fill, dtype=dtype)
    scores[:, 500:] = float("inf")
    protect = torch.zeros(2, 1000, dtype=torch.bool)
    protect[0, [0, 3, 77]], protect[1, 999] = True, True
    scores[protect] = float("-inf")
    chosen = choose(scores, 10, protect)
    assert {0, 3, 77} <= set(chosen[0].tolist())
    assert 999 in chosen[1].tolist()
    assert [len(one) for one in chosen] == [10, 10]


def test_ties_go_to_the_later_entry() -> None:
    assert choose(torch.zeros(1, 6), 2, torch.zeros(1, 6, dtype=torch.bool))[0].tolist() == [4, 5]


def test_more_protected_than_wanted_keeps_the_protected_and_nothing_else() -> None:
    protect = torch.tensor([[True, True, True, False]])
    assert choose(torch.arange(4.0)[None], 1, protect)[0].tolist() == [0, 1, 2]


def test_counts_beyond_what_is_stored_take_everything() -> None:
    assert choose(torch.rand(1, 3), 10, torch.zeros(1, 3, dtype=torch.bool))[0].tolist() == [0, 1, 2]


def test_nan_is_refused_and_the_head_named() -> None:
    scores = torch.zeros(3, 4)
    scores[2, 1] = float("nan")
    with pytest.raises(HeadwiseError, match="head 2"):
        choose(scores, 2, torch.ones(3, 4, dtype=torch.bool))


def test_the_mask_marks_what_is_chosen() -> None:
    scores, protect = torch.rand(3, 9), torch.rand(3, 9) < 0.2
    mask = choose_mask(scores, torch.tensor([1, 4, 9]), protect)
    for row, chosen in zip(mask, choose(scores, torch.tensor([1, 4, 9]), protect), strict=True):
        assert row.nonzero()[:, 0].tolist() == chosen.tolist()


def test_enough_is_the_fewest_that_reach_the_share() -> None:
    weights = torch.tensor([[0.1, 0.5, 0.4], [0.2, 0.2, 0.6]])
    assert [enough(weights, share).tolist() for share in (0.3, 0.55, 0.9, 0.95, 1.0)] == [
        [1, 1],
        [2, 1],
        [2, 3],
        [3, 3],
        [3, 3],
    ]


def test_enough_counts_what_is_given_and_takes_the_best_of_the_others() -> None:
    weights, given = torch.tensor([[0.1, 0.5, 0.4, 0.0]]), torch.tensor([[True, False, False, False]])
    assert [int(enough(weights, share, given)) for share in (0.05, 0.3, 0.55, 0.8, 1.0)] == [1, 2, 2, 3, 4]
    with pytest.raises(HeadwiseError, match="NaN"):
        enough(weights * torch.nan, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_likeliest_token_is_torchs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 4.0, 0.1):  # the last ones full of ties
        for row in (torch.randn(32, 1000, generator=generator) / scale).round(decimals=1).to(dtype):
            assert likeliest(row) == likeliest(row[None]) == int(row.argmax())
    row = torch.zeros(1000, dtype=dtype)
    row[[3, 7]], row[9] = float("inf"), float("nan")
    assert likeliest(row) == int(row.argmax()) == 9
    assert likeliest(torch.full((5,), float("-inf"), dtype=dtype)) == 0


def test_the_likeliest_token_of_double_precision_is_not_rounded() -> None:
    assert likeliest(torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)) == 1
