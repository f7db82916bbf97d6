"""Chosen tokens of coded keys, at every instruction level: a few whose last is 15 after their first, and others."""

from __future__ import annotations

import pytest
import torch

from headwise.cache.paged import PagedStore
from headwise.cache.shape import Shape
from headwise.forms import Scoring, Tokens
from headwise.kernels.native.backend import Native
from headwise.kernels.native.library import LEVELS, missing, supported
from headwise.kernels.request import PagesRequest
from tests.attention_cases import exact

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")
CHOSEN = [
    [1, 3, 5, 6, 7, 9, 11, 12, 14, 16],
    [0, 15],
    [3, 10, 18],
    list(range(1, 40, 3)),
    [0, 1, 2, *range(20, 40)],
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("codecs", [("int8", "int8"), ("int8", "plain"), ("plain", "int8"), ("int4/32", "int4/32")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_chosen_tokens_have_their_own_scales(level: str, codecs: tuple[str, str], dtype: torch.dtype) -> None:
    if why := supported(level):
        pytest.skip(f"until a processor has it: {why}")
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=made).to(dtype) for shape in ((1, 2, 1, 64), (1, 40, 64), (1, 40, 64)))
    k *= torch.arange(1, 41)[:, None] % 7 + 1  # scales that differ from token to token
    store = PagedStore(Shape(1, 64, 64, dtype, codecs=codecs))
    store.append(k, v, torch.arange(40)[None])
    held = store.segment(0, 1)
    for chosen in CHOSEN:
        where = Tokens([torch.tensor(chosen)])
        ((_, paged, _),) = store.pieces(0, 1, where, 1)
        got = Native(level).attend_pages(PagesRequest(q, paged, where, Scoring(0.02)))
        out, lse, _ = exact(q, held.keys, held.values, where.dense(1, 40), 0.02)
        limit = 1e-4 if dtype == torch.float32 else 4e-2
        torch.testing.assert_close(got.lse.double(), lse, atol=limit, rtol=limit)
        torch.testing.assert_close(got.out.double(), out, atol=limit, rtol=limit)
