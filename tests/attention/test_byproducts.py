import pytest
import torch

from headwise.attention import (
    block_maxima,
    column_mass,
    column_peaks,
    kept_mass,
    row_entropy,
    row_lse,
    window_probabilities,
)
from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Causal, Scoring, Tokens, Window
from headwise.kernels.reference import scores as reference
from tests.attention_cases import exact, forms, qkv

SIZES = [(1, 1), (1, 2), (3, 63), (63, 63), (3, 100), (257, 257)]
SCALE = 0.4


@pytest.fixture(params=["one block", "many blocks"])
def blocked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run once as is, once in blocks of very few queries."""
    if request.param == "many blocks":
        monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 3000)


def brute(q, k, where, softcap=None):
    h, _, t, _ = q.shape
    visible = where.dense(t, k.shape[1]).expand(h, -1, -1)
    return exact(q, k, k, visible, SCALE, softcap)[2]


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize(("t", "n"), SIZES)
def test_mass_entropy_and_kept_mass(t: int, n: int) -> None:
    q, k, _ = qkv(3, 2, t, n)
    kept = torch.rand(3, n, generator=torch.Generator().manual_seed(n)) < 0.5
    for where in forms(3, t, n):
        p = brute(q, k, where)
        mass = p.sum((1, 2))
        torch.testing.assert_close(column_mass(q, k, where, Scoring(SCALE)).double(), mass, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(column_peaks(q, k, where, Scoring(SCALE)).double(), p.amax(2), atol=1e-5, rtol=1e-5)
        entropy = torch.special.entr(p).sum(-1)
        torch.testing.assert_close(row_entropy(q, k, where, Scoring(SCALE)).double(), entropy, atol=1e-5, rtol=1e-5)
        s = torch.einsum("hgtd,hnd->hgtn", q.double(), k.double()) * SCALE
        lse = s.masked_fill(~where.dense(t, n)[:, None], float("-inf")).logsumexp(-1)
        torch.testing.assert_close(row_lse(q, k, where, Scoring(SCALE)).double(), lse, atol=1e-5, rtol=1e-5)
        share = (mass * kept).sum(1) / mass.sum(1).clamp(min=1e-9)
        torch.testing.assert_close(kept_mass(q, k, kept, where, Scoring(SCALE)).double(), share, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("blocked")
def test_last_queries_and_softcap() -> None:
    q, k, _ = qkv(2, 4, 63, 100)
    p = brute(q, k, Causal(), softcap=0.7)[:, :, -5:]
    mass = p.sum((1, 2))
    got = column_mass(q, k, Causal(), Scoring(SCALE, 0.7), last=5)
    torch.testing.assert_close(got.double(), mass, atol=1e-5, rtol=1e-5)
    assert float(got.sum(1)[0]) == pytest.approx(5 * 4, rel=1e-5)
    kept = torch.arange(100) % 3 == 0
    share = kept_mass(q, k, kept.expand(2, 100), Causal(), Scoring(SCALE, 0.7), last=5)
    torch.testing.assert_close(share.double(), mass[:, kept].sum(1) / 20, atol=1e-5, rtol=1e-5)
    entropy = row_entropy(q, k, Causal(), Scoring(SCALE, 0.7))[:, :, -5:]
    torch.testing.assert_close(entropy.double(), torch.special.entr(p).sum(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("t", "n"), [(1, 1), (4, 4), (4, 63), (16, 257)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_window_probabilities(t: int, n: int, dtype: torch.dtype) -> None:
    q, k, _ = qkv(2, 4, t, n, dtype=dtype)
    got = window_probabilities(q, k, Scoring(SCALE))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), brute(q, k, Causal()), atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize(("t", "n"), SIZES)
@pytest.mark.parametrize("block", [1, 16, 300])
def test_block_maxima(t: int, n: int, block: int) -> None:
    q, k, _ = qkv(2, 2, t, n)
    got = block_maxima(q, k, Scoring(SCALE), block=block)
    s = torch.einsum("hgtd,hnd->hgtn", q.double(), k.double()) * SCALE
    s = s.masked_fill(~Causal().dense(t, n)[:, None], float("-inf"))
    assert got.shape == (2, 2, -(-t // block), -(-n // block))
    if block == 1:
        torch.testing.assert_close(got.double(), s, atol=1e-5, rtol=1e-5)
        return
    for row in range(got.shape[2]):
        for column in range(got.shape[3]):
            here = s[:, :, row * block : (row + 1) * block, column * block : (column + 1) * block].amax((2, 3))
            torch.testing.assert_close(got[:, :, row, column].double(), here, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize(("block", "softcap"), [(16, None), (16, 0.7), (5, None)])
def test_block_maxima_below_the_log_sum_exp_are_probabilities(block: int, softcap: float | None) -> None:
    q, k, _ = qkv(2, 2, 63, 100)
    lse = row_lse(q, k, Causal(), Scoring(SCALE, softcap))
    got = block_maxima(q, k, Scoring(SCALE, softcap), block=block, below=lse).exp()
    p = brute(q, k, Causal(), softcap)
    for row in range(got.shape[2]):
        for column in range(got.shape[3]):
            here = p[:, :, row * block : (row + 1) * block, column * block : (column + 1) * block].amax((2, 3))
            torch.testing.assert_close(got[:, :, row, column].double(), here, atol=1e-5, rtol=1e-5)
    with pytest.raises(ShapeError, match="t=63"):
        block_maxima(q, k, Scoring(SCALE), block=block, below=lse[:, :, 1:])


def test_block_maxima_below_do_not_round_the_scale() -> None:
    q, k, _ = qkv(2, 2, 63, 100, dtype=torch.bfloat16)
    lse = row_lse(q, k, Causal(), Scoring(0.3))
    got = block_maxima(q, k, Scoring(0.3), block=16, below=lse)
    want = block_maxima(q.float(), k.float(), Scoring(0.3), block=16, below=lse)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_queries_without_keys_count_for_nothing() -> None:
    q, k, _ = qkv(2, 2, 4, 9)
    where = Tokens([torch.tensor([], dtype=torch.int64), torch.tensor([7])])
    assert torch.equal(column_mass(q, k, where, Scoring(1.0))[0], torch.zeros(9))
    assert column_mass(q, k, where, Scoring(1.0))[1].tolist() == [0] * 7 + [4.0, 0]
    assert torch.equal(row_entropy(q, k, where, Scoring(1.0)), torch.zeros(2, 2, 4))
    kept = torch.ones(2, 9, dtype=torch.bool)
    assert kept_mass(q, k, kept, where, Scoring(1.0)).tolist() == [0.0, 1.0]


def test_invisible_keys_may_be_nan() -> None:
    q, k, _ = qkv(2, 2, 3, 20)
    clean = column_mass(q, k, Window(2), Scoring(1.0))
    k[:, :15] = float("nan")
    assert torch.equal(column_mass(q, k, Window(2), Scoring(1.0)), clean)


def test_refusals() -> None:
    q, k, _ = qkv(2, 2, 3, 20)
    with pytest.raises(HeadwiseError, match="last=4 of t=3"):
        column_mass(q, k, Causal(), Scoring(1.0), last=4)
    with pytest.raises(HeadwiseError, match="last=0"):
        column_mass(q, k, Causal(), Scoring(1.0), last=0)
    with pytest.raises(HeadwiseError, match="block=0"):
        block_maxima(q, k, Scoring(1.0), block=0)
    with pytest.raises(ShapeError, match="bool"):
        kept_mass(q, k, torch.ones(2, 20), Causal(), Scoring(1.0))
    with pytest.raises(ShapeError, match="n=20"):
        kept_mass(q, k, torch.ones(2, 19, dtype=torch.bool), Causal(), Scoring(1.0))
    with pytest.raises(ShapeError, match="has lists for 1 heads"):
        row_entropy(q, k, Tokens([torch.tensor([0])]), Scoring(1.0))
    with pytest.raises(ShapeError, match="h=2"):
        column_mass(q, k[:1], Causal(), Scoring(1.0))
