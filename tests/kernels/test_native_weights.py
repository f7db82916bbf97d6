"""The compiled attention weights of a few new tokens against float64, at every instruction level that runs here."""

from __future__ import annotations

import pytest
import torch

from headwise.attention import byproducts
from headwise.forms import Causal, Full, Scoring, Where, Window
from headwise.kernels.native.library import LEVELS, missing, supported
from headwise.kernels.native.weights import Weights
from tests.attention_cases import exact, qkv

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")
SIZES = [(1, 1, 1, 1), (3, 1, 5, 63), (2, 4, 1, 64), (2, 3, 16, 1500), (1, 8, 2, 2200)]  # h, g, t, n
D = 32


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    if why := supported(request.param):
        pytest.skip(f"until a processor has it: {why}")
    return request.param


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sums_over_all_queries_and_by_query(
    level: str, dtype: torch.dtype, sizes: tuple[int, ...], cap: float | None
) -> None:
    h, _, t, n = sizes
    q, k, _ = qkv(*sizes, d=D, dtype=dtype)
    room = torch.cat((k, torch.full_like(k, float("nan"))), 1)[:, :n]  # strided, as a store holds them
    for where in (Causal(), Full()):
        weights = Weights(q, room, where, Scoring(0.3, cap), level)
        assert weights.refuse() == []
        want = exact(q, k, k, where.dense(t, n).expand(h, t, n), 0.3, cap)[2]
        torch.testing.assert_close(weights.column_mass().double(), want.sum((1, 2)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(weights.by_query().double(), want.sum(1), atol=1e-5, rtol=1e-4)


def test_threads_change_nothing(level: str) -> None:
    q, k, _ = qkv(3, 2, 3, 3000, D)
    weights = Weights(q, k, Causal(), Scoring(0.3), level)
    alone = weights.column_mass()
    torch.set_num_threads(3)
    assert torch.equal(weights.column_mass(), alone)
    torch.set_num_threads(1)


@pytest.mark.parametrize("spoiled", ["q", "k", "all keys"])
def test_what_is_no_number_shows(level: str, spoiled: str) -> None:
    q, k, _ = qkv(1, 1, 1, 60, D)
    {"q": q[0, 0, 0], "k": k[0, 20], "all keys": k}[spoiled][..., 3] = float("nan")
    assert bool(Weights(q, k, Full(), Scoring(0.3), level).column_mass().isnan().all())


def test_the_public_function_takes_it_for_steps_of_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    call = Weights.column_mass
    monkeypatch.setattr(Weights, "column_mass", lambda self, lse: taken.append(self.where) or call(self, lse))
    q, k, _ = qkv(2, 2, 20, 150, D)

    def told(q: torch.Tensor, where: Where = Causal()) -> None:  # noqa: B008
        byproducts.column_mass(q, k, where, Scoring(0.3))

    told(q[:, :, :3])
    assert len(taken) == 1
    told(q)
    told(q[:, :, :3], Window(5))
    assert len(taken) == 1
