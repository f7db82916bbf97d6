"""The compiled scores against plain torch, at every instruction level that this processor runs."""

from __future__ import annotations

import math

import pytest
import torch

from headwise.attention import byproducts
from headwise.errors import HeadwiseError
from headwise.forms import Blocks, Causal, Full, Scoring, Tokens, Union, VerticalSlash, Where, Window
from headwise.kernels.native import best
from headwise.kernels.native.byproducts import Scores
from headwise.kernels.native.library import EMULATED, LEVELS, missing, supported
from headwise.kernels.native.weights import Weights
from tests.attention_cases import build_emulated, exact, qkv, ragged

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1, 1, 1), (3, 1, 5, 63), (2, 4, 63, 63), (2, 3, 100, 257), (1, 2, 300, 300)]  # h, g, t, n
D = 32


@pytest.fixture(params=[*LEVELS, EMULATED])
def level(request: pytest.FixtureRequest) -> str:
    if request.param == EMULATED:
        build_emulated()
    if why := supported(request.param):
        pytest.skip(f"until a processor has it: {why}")
    return request.param


def forms(h: int, t: int, n: int) -> list[Where]:
    """One of every form that the kernel takes."""
    drawn = torch.rand(h, -(-t // 16), -(-n // 16), generator=torch.Generator().manual_seed(n)) < 0.4
    few = tuple(one[:: 1 + len(one) // 5] for one in ragged(h, n, 2))
    return [
        Full(),
        Causal(),
        Window(19, sinks=5),
        Blocks.from_map(16, drawn),
        Tokens(ragged(h, n)),
        VerticalSlash(tuple(ragged(h, n, 1)), few),
    ]


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_and_columns(level: str, dtype: torch.dtype, sizes: tuple[int, ...], cap: float | None) -> None:
    h, _, t, n = sizes
    q, k, _ = qkv(*sizes, d=D, dtype=dtype)
    for where in forms(h, t, n):
        scores = Scores(q, k, where, Scoring(0.3, cap), level)
        assert scores.refuse() == []
        _, want, p = exact(q, k, k, where.dense(t, n).expand(h, t, n), 0.3, cap)
        lse, entropy = scores.rows()
        torch.testing.assert_close(lse.double(), want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropy.double(), torch.special.entr(p).sum(-1), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(scores.column_mass().double(), p.sum((1, 2)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores.column_peaks().double(), p.amax(2), atol=1e-5, rtol=1e-5)
        assert torch.equal(scores.column_mass(lse), scores.column_mass())
        twice = scores.column_mass(lse - math.log(2))
        torch.testing.assert_close(twice.double(), 2 * p.sum((1, 2)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("block", [16, 48, 64, 512])
def test_block_maxima(level: str, dtype: torch.dtype, sizes: tuple[int, ...], block: int) -> None:
    q, k, _ = qkv(*sizes, d=D, dtype=dtype)
    t, n = sizes[2:]
    got = Scores(q, k, Causal(), Scoring(0.3), level).block_maxima(block)
    s = torch.einsum("hgtd,hnd->hgtn", q.double(), k.double()) * 0.3
    s = s.masked_fill(~Causal().dense(t, n)[:, None], float("-inf"))
    assert got.shape == (*sizes[:2], -(-t // block), -(-n // block))
    for row in range(got.shape[2]):
        for column in range(got.shape[3]):
            here = s[:, :, row * block : (row + 1) * block, column * block : (column + 1) * block].amax((2, 3))
            torch.testing.assert_close(got[:, :, row, column].double(), here, atol=1e-5, rtol=1e-5)


def test_extreme_scores(level: str) -> None:
    q, k, _ = qkv(2, 2, 50, 270, 16)
    q = q * 1e4 / (q.norm(dim=-1).max() * k.norm(dim=-1).max())
    p = exact(q, k, k, Causal().dense(50, 270).expand(2, 50, 270), 1.0)[2]
    scores = Scores(q, k, Causal(), Scoring(1.0), level)
    torch.testing.assert_close(scores.column_mass().double(), p.sum((1, 2)), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(scores.column_peaks().double(), p.amax(2), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(scores.rows()[1].double(), torch.special.entr(p).sum(-1), atol=1e-2, rtol=1e-3)


def test_keys_that_no_query_sees_may_be_anything(level: str) -> None:
    q, k, _ = qkv(2, 2, 40, 300, D)
    for where in forms(2, 40, 300)[2:]:
        unseen = ~where.dense(40, 300).any(1).expand(2, 300)
        assert bool(unseen.any())
        clean = Scores(q, k, where, Scoring(0.3), level)
        spoiled = Scores(q, k.masked_fill(unseen[..., None], float("nan")), where, Scoring(0.3), level)
        assert torch.equal(spoiled.column_mass(), clean.column_mass())
        assert torch.equal(spoiled.column_peaks(), clean.column_peaks())
        assert torch.equal(spoiled.rows()[1], clean.rows()[1])


def test_threads(level: str) -> None:
    q, k, _ = qkv(3, 2, 130, 200, D)
    for where in forms(3, 130, 200):
        scores = Scores(q, k, where, Scoring(0.3), level)
        alone, mass = scores.rows(), scores.column_mass()
        torch.set_num_threads(3)
        together, sums, again = scores.rows(), scores.column_mass(), scores.column_mass()
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
        torch.testing.assert_close(sums, mass, atol=1e-5, rtol=1e-5)
        assert torch.equal(sums, again)
    scores = Scores(q, k, Causal(), Scoring(0.3), level)
    alone = scores.block_maxima(160)
    torch.set_num_threads(3)
    assert torch.equal(scores.block_maxima(160), alone)


def test_peaks_that_are_not_numbers_are_told(level: str) -> None:
    q, k, _ = qkv(2, 3, 70, 150, D)
    clean = Scores(q, k, Causal(), Scoring(0.3), level).column_peaks()
    q[1, 2, 30] = float("nan")  # sees keys 0 to 110 of the 150
    got = Scores(q, k, Causal(), Scoring(0.3), level).column_peaks()
    assert bool(got[1, 2, :111].isnan().all())
    got[1, 2] = clean[1, 2]  # what it does not see may be told to be no number either, as by plain torch
    torch.testing.assert_close(got, clean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_public_functions_take_what_the_kernel_takes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = qkv(2, 2, 70, 150, D, dtype=dtype)

    def all_of(where: Where) -> list[torch.Tensor]:
        mass = [byproducts.column_mass(q, k, where, Scoring(0.3), last=last) for last in (None, 5)]
        maxima = byproducts.block_maxima(q, k, Scoring(0.3), block=32)
        peaks = byproducts.column_peaks(q, k, where, Scoring(0.3))
        return [*mass, peaks, byproducts.row_entropy(q, k, where, Scoring(0.3)), maxima]

    taken = []
    call = Scores._call
    monkeypatch.setattr(Scores, "_call", lambda self, *given, **to: taken.append(given[0]) or call(self, *given, **to))
    for where in forms(2, 70, 150):
        got = all_of(where)
        with monkeypatch.context() as plain:
            for kernel in (Scores, Weights):
                plain.setattr(kernel, "refuse", lambda self: ["in this test"])
            want = all_of(where)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
    assert taken.count("maxima") == taken.count("peaks") == 6
    assert taken.count("columns") == 9  # the last five go to another kernel or, of Blocks, to torch


def test_refusals() -> None:
    q, k, _ = qkv(2, 2, 3, 20, D)

    def told(q: torch.Tensor = q, k: torch.Tensor = k, where: Where = Causal(), scale: float = 1.0) -> str:  # noqa: B008
        return "; ".join(Scores(q, k, where, Scoring(scale)).refuse())

    assert told() == ""
    assert "width 20" in told(q[..., :20], k[..., :20])
    assert "differ" in told(k=k.half())
    assert "contiguous" in told(k=k.transpose(1, 2).contiguous().transpose(1, 2))
    assert "gradients" in told(k=k.clone().requires_grad_())
    assert "Union" in told(where=Union((Causal(), Window(2))))
    assert "scale=0" in told(scale=0.0)
    with pytest.raises(HeadwiseError, match="blocks of 20"):
        Scores(q, k, Causal(), Scoring(1.0)).block_maxima(20)
    with pytest.raises(HeadwiseError, match="maxima of Full"):
        Scores(q, k, Full(), Scoring(1.0)).block_maxima(16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("h", "g", "t", "count"), [(1, 1, 1, 1), (2, 4, 1, 37), (3, 2, 3, 16), (1, 4, 1, 300)])
@pytest.mark.parametrize("width", [16, D, 80])
def test_best_scores(level: str, dtype: torch.dtype, h: int, g: int, t: int, count: int, width: int) -> None:
    q, room, _ = qkv(h, g, t, max(count, t) + 3, width, dtype=dtype)
    vectors = room[:, :count]  # strided, as a store may hold them
    assert best.refuse(q, vectors) == []
    want = torch.einsum("hgtd,hnd->hgtn", q.double(), vectors.double()).amax((1, 2))
    for queries in (q, q.float()):  # what is kept may be narrower than the queries
        got = best.best_scores(queries, vectors, level)
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(byproducts.best_scores(q.double(), vectors.double()), want)
    assert "gradients" in best.refuse(q, vectors.clone().requires_grad_())[0]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_page_scores_are_the_highest_that_bounds_allow(dtype: torch.dtype) -> None:
    q, a, b = qkv(2, 4, 2, 37, D, dtype=dtype)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    reach = torch.maximum(*(q.double()[:, :, :, None] * one.double()[:, None, None] for one in (low, high)))
    got = byproducts.page_scores(q, torch.stack((low, high), 2))
    torch.testing.assert_close(got.double(), reach.sum(-1).amax((1, 2)), atol=1e-5, rtol=1e-5)


def test_what_is_seen_and_spoiled_shows(level: str) -> None:
    q, k, _ = qkv(1, 1, 60, 60, D)
    k[0, 20, 3] = float("nan")
    scores = Scores(q, k, Causal(), Scoring(0.3), level)
    lse, entropy = scores.rows()
    for got in (lse, entropy):
        assert got[0, 0].isnan().tolist() == [False] * 20 + [True] * 40
    assert bool(scores.column_mass()[0, :20].isnan().all())
    assert scores.block_maxima(16)[0, 0].isnan().nonzero().tolist() == [[1, 1], [2, 1], [3, 1]]
    q = q[:, :, :2].index_fill(2, torch.tensor(0), float("nan"))
    assert bool(best.best_scores(q, k[:, :4], level).isnan().all())
