import pytest
import torch

from headwise.attention import attend
from headwise.forms import Causal, Full, Scoring, Tokens, Window
from headwise.kernels.reference import scores as scores_module
from tests.attention_cases import attend_on, drawn, exact, forms, qkv


def check(got, want, atol: float) -> None:
    torch.testing.assert_close(got.out.double(), want[0], atol=atol, rtol=atol)
    torch.testing.assert_close(got.lse.double(), want[1], atol=atol, rtol=atol)


@pytest.mark.parametrize("g", [1, 2, 4, 8])
@pytest.mark.parametrize(("t", "n"), [(1, 1), (1, 2), (3, 63), (63, 63), (1, 100), (3, 100)])
def test_every_form_against_the_textbook(g: int, t: int, n: int) -> None:
    h = 2
    q, k, v = qkv(h, g, t, n, d=8, e=5)
    for where in forms(h, t, n, seed=g):
        want = exact(q, k, v, where.dense(t, n).expand(h, t, n), 0.35)
        check(attend_on("reference", q, k, v, where, Scoring(0.35)), want, 2e-6)


@pytest.mark.parametrize("n", [100, 257])
def test_whole_prompts_of_odd_length(n: int) -> None:
    q, k, v = qkv(2, 2, n, n)
    for where in forms(2, n, n):
        want = exact(q, k, v, where.dense(n, n).expand(2, n, n), 0.35)
        check(attend_on("reference", q, k, v, where, Scoring(0.35)), want, 2e-6)


def test_the_mask_of_the_definition_not_of_dense() -> None:
    q, k, v = qkv(2, 2, 5, 11)
    for where in forms(2, 5, 11):
        want = exact(q, k, v, drawn(where, 2, 5, 11), 0.35)
        check(attend_on("reference", q, k, v, where, Scoring(0.35)), want, 2e-6)


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv(2, 2, 23, 31)
    for where in forms(2, 23, 31):
        whole = attend_on("reference", q, k, v, where, Scoring(0.3))
        monkeypatch.setattr(scores_module, "BLOCK_ELEMENTS", 5 * 2 * 2 * 31)
        parts = attend_on("reference", q, k, v, where, Scoring(0.3))
        monkeypatch.undo()
        check(parts, (whole.out.double(), whole.lse.double()), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_are_kept_and_computed_wide(dtype: torch.dtype) -> None:
    q, k, v = qkv(2, 2, 3, 50, dtype=dtype)
    got = attend_on("reference", q, k, v, Causal(), Scoring(0.3))
    want = exact(q, k, v, Causal().dense(3, 50).expand(2, 3, 50), 0.3)
    assert got.out.dtype == dtype
    assert got.lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        got.out, want[0].to(dtype), atol=1e-6 if dtype != torch.float64 else 1e-12, rtol=torch.finfo(dtype).eps * 1.01
    )
    torch.testing.assert_close(got.lse.double(), want[1], atol=1e-5 if dtype != torch.float64 else 1e-12, rtol=0)


@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_softcap_before_the_mask(softcap: float) -> None:
    q, k, v = qkv(2, 2, 5, 20)
    for where in forms(2, 5, 20):
        want = exact(q, k, v, where.dense(5, 20).expand(2, 5, 20), 2.0, softcap)
        check(attend(q, k, v, where, Scoring(2.0, softcap)), want, 5e-6)


def test_rows_that_see_nothing_are_empty() -> None:
    q, k, v = qkv(2, 2, 4, 9)
    where = Tokens([torch.tensor([], dtype=torch.int64), torch.tensor([8])])
    got = attend(q, k, v, where, Scoring(1.0))
    assert torch.equal(got.out[0], torch.zeros(2, 4, 8))
    assert bool((got.lse[0] == float("-inf")).all())
    assert bool((got.lse[1, :, :3] == float("-inf")).all())
    torch.testing.assert_close(got.out[1, :, 3], v[1, 8].expand(2, 8))
    nothing = attend_on("reference", q, k[:, :0], v[:, :0], Full(), Scoring(1.0))
    assert torch.equal(nothing.out, torch.zeros(2, 2, 4, 8))
    assert bool((nothing.lse == float("-inf")).all())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_invisible_keys_and_values_may_be_anything(poison: float) -> None:
    h, t, n = 3, 6, 17
    q, k, v = qkv(h, 2, t, n)
    for where in forms(h, t, n):
        clean = attend_on("reference", q, k, v, where, Scoring(0.5))
        unseen = ~where.dense(t, n).expand(h, t, n).any(1)
        dirty_k, dirty_v = (x.masked_fill(unseen[..., None], poison) for x in (k, v))
        got = attend_on("reference", q, dirty_k, dirty_v, where, Scoring(0.5))
        assert torch.equal(got.out, clean.out)
        assert torch.equal(got.lse, clean.lse)


def test_a_poisoned_token_reaches_only_those_who_see_it() -> None:
    q, k, v = qkv(1, 2, 12, 12)
    clean = attend_on("reference", q, k, v, Window(2), Scoring(0.5))
    v[0, 5] = float("nan")
    got = attend_on("reference", q, k, v, Window(2), Scoring(0.5))
    assert got.out[0, :, 5:8].isnan().all()
    others = [0, 1, 2, 3, 4, 8, 9, 10, 11]
    torch.testing.assert_close(got.out[:, :, others], clean.out[:, :, others])


def test_gradients_of_every_form() -> None:
    q, k, v = (x.double().requires_grad_() for x in qkv(2, 2, 4, 7, d=3))
    for where in (Causal(), Window(1, 1), Tokens([torch.tensor([0, 2]), torch.tensor([0])])):
        assert torch.autograd.gradcheck(lambda q, k, v, w=where: attend(q, k, v, w, Scoring(0.5)).out, (q, k, v))
