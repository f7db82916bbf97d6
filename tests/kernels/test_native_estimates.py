"""Estimates from codes: the definition in float64, and the compiled kernel against plain torch at every level."""

from __future__ import annotations

import pytest
import torch

from headwise.attention.byproducts import estimated_maxima
from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Causal, Codes, Scoring
from headwise.forms.codes import rounded
from headwise.kernels.native.estimates import Estimates
from headwise.kernels.native.library import LEVELS, missing, supported
from tests.attention_cases import qkv

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1, 1, 1), (3, 1, 5, 63), (2, 4, 63, 63), (2, 3, 100, 257), (1, 2, 300, 300)]  # h, g, t, n
built = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    if why := supported(request.param):
        pytest.skip(f"until a processor has it: {why}")
    return request.param


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Estimates, "refuse", lambda self: ["in this test"])


def brute(q: torch.Tensor, k: Codes, below: torch.Tensor, block: int, softcap: float | None) -> torch.Tensor:
    """The maxima by their definition, one block after the other, at a scale of 0.3."""
    whole, step = rounded(q, k.most)
    keys = k.whole.double() * k.step.double()[..., None]
    s = torch.einsum("hgtd,hnd->hgtn", whole.double() * step.double()[..., None], keys)
    s = (s + torch.einsum("hgtd,hd->hgt", q.double(), k.middle.double())[..., None]) * 0.3
    s = (s if softcap is None else softcap * torch.tanh(s / softcap)) - below.double()[..., None]
    s = s.masked_fill(~Causal().dense(*s.shape[2:])[:, None], -torch.inf)
    rows = [torch.stack([one.amax((1, 2, 3)) for one in row.split(block, 3)], 1) for row in s.split(block, 2)]
    return torch.stack(rows, 1)


def case(
    sizes: tuple[int, ...], dtype: torch.dtype, most: int, d: int = 32
) -> tuple[torch.Tensor, Codes, torch.Tensor]:
    """Queries, codes of keys that have something in common, and what to take off."""
    q, k, _ = qkv(*sizes, d=d, dtype=dtype)
    return q, Codes.of(k + 2, most), torch.randn(sizes[:3], generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("block", "softcap"), [(16, None), (5, 0.7), (512, None)])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_torch_version(sizes: tuple[int, ...], block: int, softcap: float | None) -> None:
    for most in (7, 127):
        q, k, below = case(sizes, torch.float32, most)
        got = estimated_maxima(q, k, Scoring(0.3, softcap), block=block, below=below)
        torch.testing.assert_close(got.double(), brute(q, k, below, block, softcap), atol=1e-5, rtol=1e-5)


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("block", "softcap"), [(1, None), (16, 0.7), (37, None), (32, None), (512, None)])
def test_the_kernel(level: str, dtype: torch.dtype, sizes: tuple[int, ...], block: int, softcap: float | None) -> None:
    for most, d in ((7, 32), (127, 80)):
        q, k, below = case(sizes, dtype, most, d)
        q = q.transpose(1, 2).contiguous().transpose(1, 2)  # strided, as models hand them over
        estimates = Estimates(q, k, Scoring(0.3, softcap), level)
        assert estimates.refuse() == []
        got, want = estimates.block_maxima(block, below), brute(q, k, below, block, softcap)
        torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=1e-5)


@built
def test_the_public_function_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, below = case((2, 4, 70, 150), torch.bfloat16, 7)
    got = estimated_maxima(q, k, Scoring(0.3), block=32, below=below)
    assert torch.equal(got, Estimates(q, k, Scoring(0.3)).block_maxima(32, below))
    with monkeypatch.context() as torch_only:
        torch_only.setattr(Estimates, "refuse", lambda self: ["in this test"])
        want = estimated_maxima(q, k, Scoring(0.3), block=32, below=below)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    assert got.dtype == want.dtype


@built
def test_extremes_are_exact(level: str) -> None:
    """All channels at the limits: sums of 8-bit products reach 127 * 127 * 512, which no 16-bit sum holds."""
    signs = torch.tensor([1.0, -1.0]).repeat(256)
    whole = torch.stack((signs, -signs)).mul(127).to(torch.int8)[None]
    k = Codes(whole, torch.ones(1, 2), torch.zeros(1, 512), 127)
    q = torch.stack((signs, signs))[None, None] * 127
    got = Estimates(q, k, Scoring(1.0), level).block_maxima(1, torch.zeros(1, 1, 2))
    limit = 127.0 * 127 * 512
    assert got[0].tolist() == [[limit, -torch.inf], [limit, -limit]]


@built
def test_threads(level: str) -> None:
    q, k, below = case((3, 2, 130, 200), torch.float32, 7)
    estimates = Estimates(q, k, Scoring(0.3), level)
    alone = estimates.block_maxima(16, below)
    torch.set_num_threads(3)
    assert torch.equal(estimates.block_maxima(16, below), alone)


@pytest.mark.parametrize("native", [pytest.param(True, marks=built), False])
def test_what_is_seen_and_spoiled_shows(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(Estimates, "refuse", lambda self: ["in this test"])
    q, k, below = case((1, 1, 60, 60), torch.float32, 7)
    for value in (torch.nan, torch.inf):
        step = k.step.clone()
        step[0, 20] = rounded(torch.full((16,), value), 7)[1]
        got = estimated_maxima(q, Codes(k.whole, step, k.middle, 7), Scoring(0.3), block=16, below=below)
        assert got[0].isnan().nonzero().tolist() == [[1, 1], [2, 1], [3, 1]]
        odd = q.index_fill(2, torch.tensor(20), value)
        got = estimated_maxima(odd, k, Scoring(0.3), block=16, below=below)
        assert got[0].isnan().nonzero().tolist() == [[1, 0], [1, 1]]


def test_codes_hold_fifteen_values_and_err_by_half_a_step() -> None:
    keys = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(0)) + 3
    codes = Codes.of(keys, 7)
    away = keys - keys.mean(1, keepdim=True)
    assert codes.whole.dtype == torch.int8 and int(codes.whole.abs().max()) == 7
    torch.testing.assert_close(codes.step, away.abs().amax(2) / 7)
    error = (away - codes.whole * codes.step[..., None]).abs()
    assert (error <= codes.step[..., None] * 0.5001).all()
    assert not rounded(torch.zeros(2, 4), 7)[0].any()
    assert rounded(torch.tensor([[1.0, torch.inf], [1.0, 2.0]]), 7)[1].isnan().tolist() == [True, False]


def test_refusals() -> None:
    q, k, below = case((2, 2, 3, 20), torch.float32, 7)
    with pytest.raises(HeadwiseError, match="most=128"):
        Codes.of(q[0], 128)
    with pytest.raises(HeadwiseError, match="block=0"):
        estimated_maxima(q, k, Scoring(1.0), block=0, below=below)
    with pytest.raises(ShapeError, match="t=3"):
        estimated_maxima(q, k, Scoring(1.0), block=4, below=below[:, :, 1:])
    if missing():
        return
    assert "float64" in "; ".join(Estimates(q.double(), k, Scoring(1.0)).refuse())
    assert "scale=0" in "; ".join(Estimates(q, k, Scoring(0.0)).refuse())
    assert "gradients" in "; ".join(Estimates(q.clone().requires_grad_(), k, Scoring(1.0)).refuse())
    assert "width 20" in "; ".join(Estimates(q[..., :20], k, Scoring(1.0)).refuse())
