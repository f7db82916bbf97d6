"""The bounds on what eviction does to an output: they hold in 10,000 random cases, and say something."""

from __future__ import annotations

import pytest
import torch

from headwise.attention import attend
from headwise.bench.checks.bound import EvictionError, error_of, eviction_error
from headwise.errors import HeadwiseError
from headwise.forms import Causal, Scoring, Tokens

CASES, PER_SHAPE = 10_000, 50


def cases() -> list[EvictionError]:
    """Random probabilities from flat to peaked, values with and without a common offset, one to all but one evicted."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for shape in range(CASES // PER_SHAPE):
        n, e = (int(torch.randint(2, 65, (), generator=draw)), int(torch.randint(1, 33, (), generator=draw)))
        spread = 8 * torch.rand(PER_SHAPE, 1, generator=draw, dtype=torch.float64)
        p = torch.softmax(spread * torch.randn(PER_SHAPE, n, generator=draw, dtype=torch.float64), -1)
        v = torch.randn(PER_SHAPE, n, e, generator=draw, dtype=torch.float64) + shape % 3
        kept = torch.rand(PER_SHAPE, n, generator=draw) < torch.rand(PER_SHAPE, 1, generator=draw)
        kept[torch.arange(PER_SHAPE), p.argmax(-1)] |= torch.rand(PER_SHAPE, generator=draw) < 0.8
        kept[:, 0] = True
        found.append(error_of(p[:, None, None], v, kept))
    return found


def joined(found: list[EvictionError], name: str) -> torch.Tensor:
    return torch.cat([getattr(one, name).flatten() for one in found])


def test_bounds_hold_and_are_not_vacuous() -> None:
    found = cases()
    error, lost, norm = (joined(found, name) for name in ("error", "lost", "norm"))
    assert error.numel() == CASES
    for name in ("after", "before", "norms"):
        assert bool((error <= joined(found, name) * (1 + 1e-9) + 1e-12).all()), name
    after, norms = joined(found, "after"), joined(found, "norms")
    assert bool((after <= norms * (1 + 1e-9) + 1e-12).all())
    moved = error > 1e-9
    assert moved.sum() > 0.9 * CASES
    assert float((after[moved] / error[moved]).median()) < 3, "the sharper bound is near the truth"
    assert float((after[moved] / norms[moved]).median()) < 0.8, "and sharper than the one of norms"
    small = moved & (lost < 0.1)
    assert small.sum() > 500
    assert float((after[small] < norm[small]).double().mean()) > 0.9, "a small loss bounds the error below the output"


def test_one_evicted_token_meets_the_bounds_exactly() -> None:
    draw = torch.Generator().manual_seed(1)
    p = torch.softmax(torch.randn(6, 2, 3, 20, generator=draw, dtype=torch.float64), -1)
    v = torch.randn(6, 20, 8, generator=draw, dtype=torch.float64)
    kept = torch.ones(6, 20, dtype=torch.bool)
    kept[torch.arange(6), torch.arange(6)] = False
    found = error_of(p, v, kept)
    assert torch.allclose(found.error, found.after, rtol=1e-10)
    assert torch.allclose(found.error, found.before, rtol=1e-10)


def test_the_error_is_that_of_attention_over_the_kept_tokens() -> None:
    draw = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(*shape, generator=draw) for shape in ((2, 3, 4, 8), (2, 30, 8), (2, 30, 5)))
    kept = torch.rand(2, 30, generator=draw) < 0.5
    kept[:, :2] = kept[:, -4:] = True
    dense = attend(q, k, v, Causal(), Scoring(0.3)).out
    less = attend(q, k, v, Tokens(tuple(one.nonzero()[:, 0] for one in kept)), Scoring(0.3)).out
    found = eviction_error(q, k, v, kept, Scoring(0.3))
    assert torch.allclose(found.error, (dense - less).norm(dim=-1), atol=1e-5)


def test_keeping_nothing_is_refused() -> None:
    with pytest.raises(HeadwiseError, match="keep at least one"):
        error_of(torch.ones(1, 1, 1, 2) / 2, torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))
