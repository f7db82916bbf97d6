"""Triton's kernels against the reference, run by Triton's interpreter (`tests/conftest.py`): no GPU is needed."""

from __future__ import annotations

from importlib.util import find_spec
from random import Random

import pytest
import torch
from torch import Tensor

from headwise.forms import Causal, Full, Paged, Scoring, Tokens, Where, Window, join
from headwise.kernels.request import PagesRequest, Part, PartsRequest
from headwise.kernels.triton.backend import Triton
from tests.attention_cases import attend_on, ragged
from tests.kernels.test_native_decode import CODECS, pages_of, same

if not find_spec("triton"):
    pytest.skip("until triton is installed: pip install 'headwise[gpu]'", allow_module_level=True)

TRITON = Triton(interpreted=True)


def agrees(q: Tensor, paged: Paged, decoded: list[list[Tensor]], where: Where, scoring: Scoring) -> None:
    """Every lane is what the reference makes of its decoded keys and values."""
    request = PagesRequest(q, paged, where, scoring)
    assert TRITON.refuse_pages(request) == []
    got = TRITON.attend_pages(request)
    assert got.out.dtype == q.dtype and got.lse.dtype == torch.float32
    for lane, (k, v) in enumerate(zip(*decoded, strict=True)):
        own = Tokens([where.indices[lane]]) if isinstance(where, Tokens) else where
        want = attend_on("reference", q[lane, None].float(), k[None], v[None], own, scoring)
        same(got.out[lane], want.out[0], q.dtype)
        same(got.lse[lane], want.lse[0], q.dtype)


def queries(h: int, g: int, t: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(h, g, t, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codecs_and_types(codec: str, dtype: torch.dtype) -> None:
    paged, decoded = pages_of(Random(1), (codec, codec), [70, 3], (32, 32), dtype)
    agrees(queries(2, 2, 1, 32, dtype), paged, decoded, Causal(), Scoring(0.2))


@pytest.mark.parametrize("seed", range(8))
def test_random_pages_selections_and_lengths(seed: int) -> None:
    """Ragged lanes, shuffled page tables, mixed codecs, odd widths, poisoned unused pages."""
    random = Random(seed)
    codecs = random.choice(CODECS), random.choice(CODECS)
    widths = tuple(random.choice([32, 64, 96] + [16, 40, 80] * (codec in ("plain", "int8"))) for codec in codecs)
    t, g, h = random.choice([1, 1, 2, 5, 16]), random.choice([1, 3, 4, 8]), random.randrange(1, 4)
    lengths = [random.randrange(t, random.choice([t + 3, 80, 300])) for _ in range(h)]
    paged, decoded = pages_of(random, codecs, lengths, widths, torch.float32)
    where: Where = random.choice([Full(), Causal(), Window(random.randrange(90), random.randrange(9))])
    if seed % 2:
        paged, decoded = pages_of(random, codecs, [lengths[0]] * h, widths, torch.float32)
        where = Tokens(ragged(h, lengths[0], seed))
    scoring = Scoring(widths[0] ** -0.5, random.choice([None, 8.0]))
    agrees(queries(h, g, t, widths[0], seed=seed), paged, decoded, where, scoring)


def test_long_keys_are_split_and_far_scores_add() -> None:
    """Several splits of one lane, more rows than a program takes, and scores that float32 could not sum unshifted."""
    paged, decoded = pages_of(Random(3), ("plain", "int8"), [900, 40], (16, 16), torch.float32)
    agrees(60 * queries(2, 24, 3, 16), paged, decoded, Causal(), Scoring(1.0))
    agrees(queries(2, 1, 1, 16), paged, decoded, Window(600, 5), Scoring(0.25, 2.0))


def test_prepared_calls_over_parts_and_levels() -> None:
    """Two parts have the lanes of level 0 between them, a third has earlier tokens of two of them; lanes lengthen, and
    a window reaches back in each."""
    q, scoring = queries(3, 2, 1, 32), Scoring(0.2)
    held = [
        pages_of(Random(seed), ("int8", "int4"), lengths, (32, 32), torch.float32)
        for seed, lengths in enumerate(([60, 41], [33], [50, 20]))
    ]
    lanes, levels = ((2, 0), (1,), (0, 1)), (0, 0, 1)
    parts = tuple(Part(paged, own, level) for (paged, _), own, level in zip(held, lanes, levels, strict=True))
    request = PartsRequest(q, parts, Full(), scoring)
    assert TRITON.refuse_prepare(request) == []
    prepared = TRITON.prepare_pages(request)
    for lengths, lefts in (([60, 41], [-1, -1, -1]), ([58, 17], [-1, -1, -1]), ([60, 30], [9, 200, 0])):
        prepared.lengthen(0, lengths)
        again = prepared.over(q, True, lefts, out := torch.empty(3, 2, 1, 32))
        (got,) = again.run()
        assert got.out.data_ptr() == out.data_ptr()
        for lane in range(3):
            found = []
            for part, ((_, (keys, values)), own, left) in enumerate(zip(held, lanes, lefts, strict=True)):
                if lane in own:
                    i = own.index(lane)
                    stop = lengths[i] if part == 0 else len(keys[i])
                    start = 0 if left < 0 else max(0, stop - 1 - left)
                    own_q, k, v = q[lane, None], keys[i][None, start:stop], values[i][None, start:stop]
                    found.append(attend_on("reference", own_q, k, v, Full(), scoring))
            want = join(found)
            same(got.out[lane], want.out[0], torch.float32)
            same(got.lse[lane], want.lse[0], torch.float32)


def test_what_is_refused_says_so() -> None:
    paged, _ = pages_of(Random(5), ("plain", "plain"), [20, 20], (32, 32), torch.float32)
    q = queries(2, 1, 1, 32)

    def refused(q: Tensor, where: Where | None = None, triton: Triton = TRITON) -> str:
        return " ".join(triton.refuse_pages(PagesRequest(q, paged, where or Causal(), Scoring(1.0))))

    assert refused(q) == ""
    assert "run on cuda, not on cpu" in refused(q, triton=Triton())
    assert "no Triton kernel for torch.float64" in refused(q.double())
    assert "gradients" in refused(q.clone().requires_grad_())
    assert "17 tokens over Full" in refused(queries(2, 1, 17, 32), Full())
