"""The compiled decoding kernel against the reference, at every instruction level that this processor runs."""

from __future__ import annotations

import platform
from random import Random

import pytest
import torch
from torch import Tensor

from headwise.forms import Causal, Full, Paged, Scoring, Side, Tokens, Where, Window
from headwise.kernels.native.backend import Native
from headwise.kernels.native.library import FOLDER, LEVELS, missing, supported
from headwise.kernels.reference.integers import pack
from headwise.kernels.request import PagesRequest, Request
from tests.attention_cases import attend_on, qkv, ragged

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")
# float32 to sums of up to 4097 terms; the others to the rounding of out and of the weights
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
PAGE = 16


@pytest.fixture(params=LEVELS)
def native(request: pytest.FixtureRequest) -> Native:
    if why := supported(request.param):
        pytest.skip(f"until a processor has it: {why}")
    return Native(request.param)


def same(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got.double(), want.double(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def agrees(native: Native, request: Request) -> None:
    """The kernel equals the reference on the same inputs in float32."""
    assert native.refuse(request) == []
    got = native.attend(request)
    q, k, v = (x.float() for x in (request.q, request.k, request.v))
    want = attend_on("reference", q, k, v, request.where, request.scoring)
    assert got.out.dtype == request.q.dtype
    assert not got.out.isnan().any()
    same(got.out, want.out, request.q.dtype)
    same(got.lse, want.lse, request.q.dtype)


def forms(h: int, n: int) -> list[Where]:
    return [Full(), Causal(), Window(0), Window(10, sinks=4), Window(2 * n, sinks=1), Tokens(ragged(h, n))]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 129, 600])
def test_equals_the_reference(native: Native, dtype: torch.dtype, n: int) -> None:
    widths = [(32, 32), (64, 64), (80, 80), (96, 48), (128, 128), (256, 256)]
    for i, (h, g, t) in enumerate([(2, 1, 1), (2, 4, 1), (1, 16, 1), (2, 2, 3), (1, 3, 16), (2, 2, 1)]):
        if t > n:
            continue
        d, e = widths[(i + n) % len(widths)]
        q, k, v = qkv(h, g, t, n, d, e, dtype)
        for where in forms(h, n):
            agrees(native, Request(2 * q, k, v, where, Scoring(d**-0.5, 5.0 if i % 2 else None)))


@pytest.mark.skipif(platform.system() != "Linux", reason="until a system other than Linux merges symbols of libraries")
def test_levels_share_nothing() -> None:
    """No library asks the loader (by ELF's mark for GNU extensions) to merge its objects with another level's."""
    libraries = [FOLDER / f"{level}.so" for level in LEVELS]
    marks = {path.name: path.read_bytes()[7] for path in libraries if path.is_file()}
    assert set(marks.values()) == {0}, marks


def test_a_long_cache_is_split_over_threads(native: Native) -> None:
    q, k, v = qkv(1, 4, 2, 4097, 64)
    torch.set_num_threads(2)  # the fixture around every test puts it back
    agrees(native, Request(q, k, v, Causal(), Scoring(0.125)))


def test_extreme_scores_and_unseen_rubbish(native: Native) -> None:
    q, k, v = qkv(2, 2, 1, 300, 32)
    agrees(native, Request(q * 1e4, k, v, Causal(), Scoring(1.0)))
    chosen = ragged(2, 300)
    for head, one in enumerate(chosen):
        unseen = torch.ones(300, dtype=torch.bool).index_fill_(0, one, False)
        k[head, unseen] = v[head, unseen] = float("nan")
    agrees(native, Request(q, k, v, Tokens(chosen), Scoring(1.0)))


def test_strides(native: Native) -> None:
    q, k, v = qkv(3, 2, 4, 90, 32)
    apart = [x.transpose(0, -2).contiguous().transpose(0, -2) for x in (q, k, v)]
    agrees(native, Request(apart[0], apart[1], apart[2], Causal(), Scoring(0.2)))
    agrees(native, Request(q, k[:1].expand(3, 90, 32), v[:1].expand(3, 90, 32), Causal(), Scoring(0.2)))


# ---- pages ---------------------------------------------------------------------------------------------------------


CODECS = ["plain", "int8", "int4", "int2"]


def encoded(codec: str, x: Tensor, group: int) -> tuple[dict[str, Tensor], Tensor]:
    """Planes of `x [slots, width]` and what they decode to."""
    if codec == "plain":
        return {"data": x}, x.float()
    parts = x.float().unflatten(1, (-1, x.shape[1] if codec == "int8" else group))
    if codec == "int8":
        scale = (parts.abs().amax(2) / 127).half()
        levels = (parts / scale[..., None].float()).round().clamp(-127, 127)
        decoded = levels * scale[..., None].float()
        return {"data": levels.flatten(1).to(torch.int8), "scale": scale}, decoded.flatten(1)
    minimum = parts.amin(2).half()
    bits = int(codec.removeprefix("int"))
    scale = ((parts.amax(2) - minimum.float()) / (2**bits - 1)).half()
    levels = ((parts - minimum[..., None].float()) / scale[..., None].float()).round().clamp(0, 2**bits - 1)
    decoded = levels * scale[..., None].float() + minimum[..., None].float()
    data = pack(levels.flatten(1).to(torch.uint8), bits)
    return {"data": data, "scale": scale, "minimum": minimum}, decoded.flatten(1)


def pages_of(random: Random, codecs: tuple[str, str], lengths: list[int], widths: tuple[int, int], dtype: torch.dtype):
    """Pages in a random order with unused ones full of NaN, and each lane's keys and values decoded."""
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += -(-length // PAGE) + random.randrange(2)
    order = list(range(total + 2))
    random.shuffle(order)
    table = torch.tensor(order[:total]) if random.random() < 0.7 else None
    physical = torch.arange(total) if table is None else table
    made = torch.Generator().manual_seed(random.randrange(10**6))
    sides, decoded = [], []
    for codec, width in zip(codecs, widths, strict=True):
        x = torch.randn((total + 2) * PAGE, width, generator=made).to(dtype)
        group = random.choice([one for one in (32, 64, 128) if width % one == 0] or [width])
        planes, exact = encoded(codec, x, group)
        used = torch.zeros((total + 2) * PAGE, dtype=torch.bool)
        lanes = []
        for start, length in zip(starts, lengths, strict=True):
            slots = (physical[start:, None] * PAGE + torch.arange(PAGE)).flatten()[:length]
            used[slots] = True
            lanes.append(exact[slots])
        for plane in planes.values():
            if plane.is_floating_point():
                plane[~used] = float("nan")
        shaped = {name: plane.view(total + 2, PAGE, -1) for name, plane in planes.items()}
        name = f"{codec}/{group}" if codec in ("int4", "int2") else codec
        sides.append(Side(name, width, shaped))
        decoded.append(lanes)
    paged = Paged(sides[0], sides[1], tuple(lengths), tuple(starts), table, PAGE, list)
    return paged, decoded


@pytest.mark.parametrize("seed", range(12))
def test_random_pages_selections_and_lengths(native: Native, seed: int) -> None:
    """Ragged lanes, shuffled page tables, mixed element types, poisoned unused pages: against the reference."""
    random = Random(seed)
    for _ in range(6):
        dtype = random.choice([torch.float32, torch.bfloat16])
        codecs = random.choice(CODECS), random.choice(CODECS)
        widths = tuple(random.choice([32, 64, 96, 128] + [80] * (codec in ("plain", "int8"))) for codec in codecs)
        t, g, h = random.choice([1, 1, 2, 5, 16]), random.choice([1, 2, 3, 4, 8]), random.randrange(1, 4)
        lengths = [random.randrange(t, random.choice([t + 3, 80, 700])) for _ in range(h)]
        paged, (keys, values) = pages_of(random, codecs, lengths, widths, dtype)
        q = torch.randn(h, g, t, widths[0], generator=torch.Generator().manual_seed(seed)).to(dtype)
        where: Where = random.choice([Full(), Causal(), Window(random.randrange(200), random.randrange(9))])
        if len(set(lengths)) == 1 and random.random() < 0.5:
            where = Tokens(ragged(h, lengths[0], seed))
        scoring = Scoring(widths[0] ** -0.5, random.choice([None, 8.0]))
        assert native.refuse_pages(PagesRequest(q, paged, where, scoring)) == []
        got = native.attend_pages(PagesRequest(q, paged, where, scoring))
        for lane in range(h):
            own = Tokens([where.indices[lane]]) if isinstance(where, Tokens) else where
            exact = (q[lane, None].float(), keys[lane][None].float(), values[lane][None].float())
            want = attend_on("reference", *exact, own, scoring)
            same(got.out[lane], want.out[0], dtype)
            same(got.lse[lane], want.lse[0], dtype)


def test_refusals(native: Native) -> None:
    q, k, v = qkv(2, 2, 1, 9, 32)
    fine = Request(q, k, v, Causal(), Scoring(1.0))
    assert native.refuse(fine) == []
    assert "width 8" in native.refuse(Request(*qkv(2, 2, 1, 9, 8), Causal(), Scoring(1.0)))[0]
    assert "float64" in native.refuse(Request(q.double(), k.double(), v.double(), Causal(), Scoring(1.0)))[0]
    scattered = k.transpose(1, 2).contiguous().transpose(1, 2)
    assert "contiguous" in native.refuse(Request(q, scattered, v, Causal(), Scoring(1.0)))[0]
    assert "gradients" in native.refuse(Request(q, k, v.clone().requires_grad_(), Causal(), Scoring(1.0)))[0]
    paged, _ = pages_of(Random(0), ("plain", "plain"), [20], (32, 32), torch.float32)
    strange = Paged(Side("int3", 32, paged.keys.planes), paged.values, paged.lengths, paged.starts, None, PAGE, list)
    assert "int3" in native.refuse_pages(PagesRequest(q[:1], strange, Causal(), Scoring(1.0)))[0]
