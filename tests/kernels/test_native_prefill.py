"""The compiled prefill kernel against the reference, at every instruction level that this processor runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headwise.forms import Attended, Blocks, Causal, Full, Scoring, Tokens, Union, VerticalSlash, Where, Window
from headwise.kernels.native.held import CSide, Held
from headwise.kernels.native.library import EMULATED, LEVELS, missing, supported
from headwise.kernels.native.prefill import prefill, refuse
from headwise.kernels.reference.integers import pack
from tests.attention_cases import attend_on, build_emulated, qkv, ragged

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")
# float32 to sums of up to 4097 terms; the others to the rounding of out and of the weights
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
NONE = torch.tensor([], dtype=torch.int64)


@pytest.fixture(params=[*LEVELS, EMULATED])
def level(request: pytest.FixtureRequest) -> str:
    if request.param == EMULATED:
        build_emulated()
    if why := supported(request.param):
        pytest.skip(f"until a processor has it: {why}")
    return request.param


def forms(h: int, t: int, n: int, seed: int = 0) -> list[Where]:
    """One or more of every form that the kernel takes."""
    made = torch.Generator().manual_seed(seed + n)
    sizes = [16, 48, 64, 80, 128]
    maps = [torch.rand(h, -(-t // size), -(-n // size), generator=made) < 0.4 for size in sizes]
    few = tuple(one[:: 1 + len(one) // 5] for one in ragged(h, n, seed + 2))
    return [
        Full(),
        Causal(),
        Window(0),
        Window(19, sinks=5),
        Window(n // 2 + 1, sinks=n // 3),
        Window(2 * n, sinks=1),
        *(Blocks.from_map(size, one) for size, one in zip(sizes, maps, strict=True)),
        Tokens(ragged(h, n, seed)),
        VerticalSlash(tuple(ragged(h, n, seed + 1)), few),
        VerticalSlash(few, tuple(ragged(h, n, seed + 1))),
        VerticalSlash((NONE,) * h, (torch.arange(min(n, 40)),) * h),
    ]


def run(q: Tensor, k: Tensor, v: Tensor, where: Where, level: str, scoring: Scoring) -> Attended:
    assert refuse(q, where, scoring) == []
    return prefill(q, Held.dense(k, v), where, scoring, level)


def agrees(got: Attended, q: Tensor, k: Tensor, v: Tensor, where: Where, scoring: Scoring) -> None:
    """`got` equals the reference on the same inputs in float32, within the rounding of q's type."""
    wide = (x.float() for x in (q, k, v))
    want = attend_on("reference", *wide, where, scoring)
    tolerance = TOLERANCE[q.dtype]
    assert got.out.dtype == q.dtype
    assert got.lse.dtype == torch.float32
    torch.testing.assert_close(got.out.float(), want.out, atol=tolerance, rtol=tolerance, msg=lambda m: f"{where}: {m}")
    torch.testing.assert_close(got.lse, want.lse, atol=1e-5, rtol=1e-5, msg=lambda m: f"{where}: {m}")


SIZES = [  # h, g, t, n, d, e
    (1, 1, 1, 1, 16, 16),
    (2, 3, 5, 9, 32, 48),
    (2, 4, 67, 257, 80, 96),
    (3, 2, 130, 130, 64, 64),
    (1, 5, 17, 403, 256, 128),
    (1, 16, 33, 47, 64, 32),
    (2, 1, 200, 519, 128, 128),
]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_form_agrees_with_the_reference(level: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    h, g, t, n, d, e = sizes
    q, k, v = qkv(h, g, t, n, d, e, dtype)
    for where in forms(h, t, n):
        scoring = Scoring(d**-0.5)
        agrees(run(q, k, v, where, level, scoring), q, k, v, where, scoring)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("d", [96, 512])
def test_longer_prompts_and_soft_caps(level: str, dtype: torch.dtype, d: int) -> None:
    q, k, v = qkv(1, 2, 300, 1101, d, 64, dtype)
    for where in (Causal(), Full(), forms(1, 300, 1101)[7], forms(1, 300, 1101)[-2]):
        for cap in (None, 2.5):
            scoring = Scoring(2 * d**-0.5, cap)
            agrees(run(q, k, v, where, level, scoring), q, k, v, where, scoring)


def test_thousands_of_queries(level: str) -> None:
    q, k, v = qkv(1, 1, 4097, 4097, 16)
    for where in (Causal(), Window(1000, sinks=4)):
        agrees(run(q, k, v, where, level, Scoring(0.3)), q, k, v, where, Scoring(0.3))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_strides(level: str, dtype: torch.dtype) -> None:
    q, k, v = qkv(3, 2, 40, 70, 64, 32, dtype)
    turned = q.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)  # [t, h, g, d] as a projection leaves it
    room = torch.full((70, 3, 128), float("nan"), dtype=dtype)
    room[:, :, :64], room[:, :, 64:96] = k.transpose(0, 1), v.transpose(0, 1)
    room = room.transpose(0, 1)
    for where in forms(3, 40, 70):
        want = run(q, k, v, where, level, Scoring(0.125))
        got = run(turned, room[:, :, :64], room[:, :, 64:96], where, level, Scoring(0.125))
        assert torch.equal(got.out, want.out)
        assert torch.equal(got.lse, want.lse)
    shared = run(q, k[:1].expand(3, 70, 64), v[:1].expand(3, 70, 32), Causal(), level, Scoring(0.125))
    agrees(shared, q, k[:1].expand(3, 70, 64), v[:1].expand(3, 70, 32), Causal(), Scoring(0.125))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("t", "n"), [(40, 300), (130, 130), (70, 135)])
def test_keys_that_no_query_sees_may_be_anything(level: str, dtype: torch.dtype, t: int, n: int) -> None:
    q, k, v = qkv(2, 2, t, n, 32, dtype=dtype)
    hidden_somewhere = 0
    for where in forms(2, t, n):
        unseen = ~where.dense(t, n).any(1).expand(2, n)
        hidden_somewhere += int(unseen.any())
        poisoned = (x.masked_fill(unseen[..., None], float("nan")) for x in (k, v))
        got, want = run(q, *poisoned, where, level, Scoring(0.2)), run(q, k, v, where, level, Scoring(0.2))
        assert torch.equal(got.out, want.out), where
        assert torch.equal(got.lse, want.lse), where
    assert hidden_somewhere >= 3


def test_later_tokens_change_nothing_before_them(level: str) -> None:
    q, k, v = qkv(2, 2, 90, 150, 32)
    for where in forms(2, 90, 150):
        if not where.causal:
            continue
        before = run(q, k, v, where, level, Scoring(0.2))
        changed_k, changed_v = k.clone(), v.clone()
        changed_k[:, 100:], changed_v[:, 100:] = -3.0, 1e6
        after = run(q, changed_k, changed_v, where, level, Scoring(0.2))
        assert torch.equal(before.out[:, :, :40], after.out[:, :, :40])
        assert torch.equal(before.lse[:, :, :40], after.lse[:, :, :40])


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_scores(level: str, size: float) -> None:
    q, k, v = qkv(2, 2, 50, 270, 16)
    q = q * size / (q.norm(dim=-1).max() * k.norm(dim=-1).max())
    for where in (Causal(), Full(), VerticalSlash((torch.arange(0, 270, 7),) * 2, (torch.arange(9),) * 2)):
        got = run(q, k, v, where, level, Scoring(1.0))
        want = attend_on("reference", q.double(), k.double(), v.double(), where, Scoring(1.0))
        torch.testing.assert_close(got.out.double(), want.out, atol=5e-3, rtol=1e-3)
        torch.testing.assert_close(got.lse.double(), want.lse, atol=2e-3, rtol=1e-6)


def test_scores_of_minus_infinity_weigh_nothing(level: str) -> None:
    q, k, v = qkv(1, 1, 30, 30, 16)
    q, k = q.abs(), k.clone()
    k[:, 3:20, 0] = float("-inf")
    got = run(q, k, v, Causal(), level, Scoring(1.0))
    listed = Tokens([torch.cat((torch.arange(3), torch.arange(20, 30)))])
    agrees(got, q, k.masked_fill(k.isinf(), 0), v, listed, Scoring(1.0))


def test_spoiled_keys_that_are_seen_show(level: str) -> None:
    q, k, v = qkv(1, 1, 30, 30, 16)
    k[0, 10, 3] = float("nan")
    out = run(q, k, v, Causal(), level, Scoring(1.0)).out[0, 0]
    assert bool(out[10:].isnan().all())
    assert bool(out[:10].isfinite().all())


def test_rows_that_see_nothing(level: str) -> None:
    q, k, v = qkv(2, 2, 40, 64, 16)
    late = Tokens([NONE, torch.arange(50, 64)])
    got = run(q, k, v, late, level, Scoring(1.0))
    agrees(got, q, k, v, late, Scoring(1.0))
    assert bool((got.lse[0] == float("-inf")).all())
    assert bool((got.out[1, :, :26] == 0).all())
    nothing = run(q, k[:, :0], v[:, :0], Full(), level, Scoring(1.0))
    assert bool((nothing.out == 0).all())
    assert bool((nothing.lse == float("-inf")).all())


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(level: str, threads: int) -> None:
    q, k, v = qkv(3, 2, 70, 200, 32)
    for where in forms(3, 70, 200):
        torch.set_num_threads(1)
        want = run(q, k, v, where, level, Scoring(0.2))
        torch.set_num_threads(threads)
        got = run(q, k, v, where, level, Scoring(0.2))
        assert torch.equal(got.out, want.out)
        assert torch.equal(got.lse, want.lse)


def paged(codec: str, table: Tensor, width: int, seed: int) -> tuple[CSide, Tensor, list[Tensor]]:
    """A side in pages of 16, `table [h, pages]`: for C, dequantised `[slots, width]`, and what to keep alive."""
    made = torch.Generator().manual_seed(seed)
    slots = (int(table.max()) + 1) * 16
    if codec == "bfloat16":
        data = torch.randn(slots, width, generator=made).bfloat16()
        return CSide(data=data.data_ptr(), token=2 * width, width=width, kind=1), data.float(), [data]
    most = {"int8": 128, "int4": 8, "int2": 2}[codec]
    scale = ((torch.rand(slots, width // 32, generator=made) + 0.5) * 2 / most).half()
    levels = torch.randint(-most, most, (slots, width), generator=made)
    data, minimum = levels.to(torch.int8), -most * scale
    if codec != "int8":
        data = pack((levels + most).to(torch.uint8), int(codec.removeprefix("int")))
    kind = {"int8": 3, "int4": 4, "int2": 5}[codec]
    side = CSide(data=data.data_ptr(), token=data.shape[1], width=width, kind=kind, group=32)
    side.scale, side.scale_token = scale.data_ptr(), 2 * scale.shape[1]
    side.minimum = minimum.data_ptr() if codec != "int8" else None
    return side, levels * scale.float().repeat_interleave(32, 1), [data, scale, minimum]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codec", ["bfloat16", "int8", "int4", "int2"])
def test_pages_are_read_as_they_are_held(level: str, codec: str, dtype: torch.dtype) -> None:
    h, t, n = 2, 40, 150
    table = torch.randperm(25, generator=torch.Generator().manual_seed(3))[: h * 10].view(h, 10).to(torch.int32)
    (key, wide_k, kept_k), (value, wide_v, kept_v) = (paged(codec, table, 64, seed) for seed in (1, 2))
    held = Held(key, value, [n] * h, [0, 10])
    held.c.table, held.c.page = table.data_ptr(), 16
    slots = (table.long()[:, :, None] * 16 + torch.arange(16)).flatten(1)[:, :n]
    k, v = wide_k[slots], wide_v[slots]
    q = qkv(h, 2, t, n, 64, dtype=dtype)[0]
    tolerance = TOLERANCE[dtype]  # of keys too: they are rounded to q's type where it is what the processor multiplies
    for where in (Causal(), *forms(h, t, n)[-5:]):
        got = prefill(q, held, where, Scoring(0.1), level)
        want = attend_on("reference", q.float(), k, v, where, Scoring(0.1))
        torch.testing.assert_close(got.out.float(), want.out, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(got.lse, want.lse, atol=tolerance, rtol=1e-5)
    assert kept_k
    assert kept_v


def test_lanes_of_different_lengths(level: str) -> None:
    q, k, v = qkv(3, 2, 20, 90, 32)
    held, lengths = Held.dense(k, v), [90, 20, 47]
    ragged_held = Held(held.c.key, held.c.value, lengths, [0, 5, 43])
    got = prefill(q, ragged_held, Causal(), Scoring(0.2), level)
    for lane, (first, length) in enumerate(zip([0, 5, 43], lengths, strict=True)):
        alone = (q[lane, None], k[lane, None, first : first + length], v[lane, None, first : first + length])
        want = run(*alone, Causal(), level, Scoring(0.2))
        assert torch.equal(got.out[lane], want.out[0])


def test_refusals() -> None:
    q, _, _ = qkv(2, 2, 3, 9, 16)
    fine = Scoring(1.0)
    assert refuse(q, Causal(), fine) == []
    assert "float64" in refuse(q.double(), Causal(), fine)[0]
    assert "meta" in refuse(q.to("meta"), Causal(), fine)[0]
    assert "contiguous" in refuse(q.transpose(2, 3).contiguous().transpose(2, 3), Causal(), fine)[0]
    assert "Union" in refuse(q, Union((Causal(), Window(2))), fine)[0]
    assert "size=5" in refuse(q, Blocks.from_map(5, torch.ones(2, 1, 2, dtype=torch.bool)), fine)[0]
    assert "scale=-1.0" in refuse(q, Causal(), Scoring(-1.0))[0]
    assert len(refuse(q.double(), Causal(), Scoring(0.0))) == 2
