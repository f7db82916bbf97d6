"""A selection of nothing attends to nothing: out 0 and log-sum-exp -inf, whatever the form, the backend, the level."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from headwise.attention import attend
from headwise.forms import (
    Attended,
    Blocks,
    Buckets,
    Composite,
    Full,
    Gathered,
    Paged,
    Piece,
    Scoring,
    Side,
    Tokens,
    Until,
    VerticalSlash,
    Weighted,
    Where,
    Window,
)
from headwise.kernels.dispatch import BACKENDS, Kernel
from headwise.kernels.native.backend import Native
from headwise.kernels.native.library import LEVELS, missing, supported
from headwise.kernels.request import Request
from tests.attention_cases import attend_pages_on, qkv

REFERENCE, SDPA = (BACKENDS.all()[name].kernels["attend"] for name in ("reference", "sdpa"))
NONE = torch.zeros(0, dtype=torch.int64)
HEADS, GROUP, WIDTH, PAGE = 2, 2, 16, 16
WORKING = [] if missing() else [level for level in LEVELS if not supported(level)]
Attending = Kernel[[Request], Attended]
BY_LEVEL = {f"native-{level}": Native(level) for level in WORKING}
KERNELS: dict[str, Attending] = {
    "reference": REFERENCE,
    "sdpa": SDPA,
    **{name: Kernel(native.refuse, native.attend) for name, native in BY_LEVEL.items()},
}
EVERY_KERNEL = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
EMPTY = pytest.mark.parametrize("empty", [(True, True), (True, False), (False, True)], ids=["all", "first", "last"])
SIZES = pytest.mark.parametrize(("t", "n"), [(1, 40), (3, 40), (40, 40), (17, 64)])


def forms(t: int, n: int, empty: tuple[bool, ...]) -> Iterator[Where]:
    """Every form that can be empty, with nothing in some heads and one block, column or token in the others."""
    lists = tuple(NONE if none else torch.tensor([n // 2]) for none in empty)
    blocks = torch.zeros(HEADS, -(-t // PAGE), -(-n // PAGE), dtype=torch.bool)
    for head, none in enumerate(empty):
        blocks[head, :, 0] = not none
    last = torch.full((HEADS, n), -1)
    for head, none in enumerate(empty):
        last[head, 0] = -1 if none else n
    tokens, by_block = Tokens(lists), Blocks.from_map(PAGE, blocks)
    nothing = Tokens((NONE,) * HEADS)
    yield from (tokens, by_block, Until(last), VerticalSlash(lists, (NONE,) * HEADS), tokens | nothing)
    yield by_block | nothing | VerticalSlash((NONE,) * HEADS, (NONE,) * HEADS)
    yield Weighted(tokens, tuple(torch.zeros(1, 1, len(one)) for one in lists))
    hidden = tuple(torch.full((1, 1, 1), -torch.inf if none else 0.0) for none in empty)
    yield Weighted(Tokens((torch.tensor([1]),) * HEADS), hidden)
    bias = torch.zeros(HEADS, 1, 2).masked_fill_(torch.tensor(empty)[:, None, None], -torch.inf)
    queries = torch.arange(t).expand(HEADS, GROUP, 1, t)
    yield Buckets(queries, torch.tensor([0, 1]).expand(HEADS, 1, 2), bias)
    order = [torch.arange(count).expand(HEADS, -1) for count in (t, n)]
    listed = torch.where(torch.tensor(empty), -1, 0)[:, None, None].expand(HEADS, -(-t // PAGE), 1)
    yield Gathered(*order, listed, PAGE, PAGE)
    if all(empty):
        yield Tokens(torch.zeros(HEADS, 0, dtype=torch.int64))


def is_nothing(got: Attended, empty: tuple[bool, ...]) -> None:
    for head, none in enumerate(empty):
        assert bool((got.lse[head] == -torch.inf).any()) or not none
        if none:
            assert bool((got.lse[head] == -torch.inf).all())
            assert bool((got.out[head] == 0).all())
        assert not bool(got.out[head].isnan().any())


@EMPTY
@SIZES
@EVERY_KERNEL
def test_every_backend_that_takes_it(kernel: Attending, t: int, n: int, empty: tuple[bool, ...]) -> None:
    q, k, v = qkv(HEADS, GROUP, t, n, WIDTH)
    for where in forms(t, n, empty):
        request = Request(q, k, v, where, Scoring(0.25))
        request.check()
        if not kernel.refuse(request):
            got = kernel.run(request)
            is_nothing(got, empty)
            want = REFERENCE.run(request)
            torch.testing.assert_close(got.out, want.out, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(got.lse, want.lse, atol=1e-5, rtol=1e-5)


@EVERY_KERNEL
@pytest.mark.parametrize("t", [1, 3, 20])
def test_no_keys_at_all(kernel: Attending, t: int) -> None:
    q, k, v = qkv(HEADS, GROUP, t, 0, WIDTH)
    request = Request(q, k, v, Full(), Scoring(0.25))
    assert not kernel.refuse(request)
    is_nothing(kernel.run(request), (True, True))


@EMPTY
@SIZES
def test_pieces(t: int, n: int, empty: tuple[bool, ...]) -> None:
    q, k, v = qkv(HEADS, GROUP, t, n, WIDTH)
    for where in forms(t, n, empty):
        is_nothing(attend(q, k, v, Composite((Piece(range(t), range(n), where),)), Scoring(0.25)), empty)
    later = Piece(range(t - 1, t), range(0), Full())
    assert bool((attend(q, k, v, Composite((later,)), Scoring(0.25)).lse == -torch.inf).all())


def paged(k: Tensor, v: Tensor) -> Paged:
    """Whole pages of keys and values [h, n, d], in order, lane after lane."""
    lanes, n = k.shape[:2]
    pages = -(-n // PAGE)

    def side(x: Tensor) -> Side:
        filled = torch.nn.functional.pad(x, (0, 0, 0, pages * PAGE - n))
        return Side("plain", x.shape[2], {"data": filled.reshape(lanes * pages, PAGE, x.shape[2])})

    starts = tuple(lane * pages for lane in range(lanes))
    return Paged(side(k), side(v), (n,) * lanes, starts, None, PAGE, lambda: [(slice(0, lanes), k, v)])


@EMPTY
@SIZES
@pytest.mark.parametrize("backend", [None, "reference", "sdpa", "native"])
def test_pages(t: int, n: int, empty: tuple[bool, ...], backend: str | None) -> None:
    q, k, v = qkv(HEADS, GROUP, t, n, WIDTH)
    if backend == "native" and missing():
        pytest.skip(f"until the kernels are built: {missing()}")
    for where in forms(t, n, empty):
        request = Request(q, k, v, where, Scoring(0.25))
        if backend is None or not BACKENDS.all()[backend].kernels["attend"].refuse(request):
            is_nothing(attend_pages_on(backend, q, paged(k, v), where, Scoring(0.25)), empty)


@pytest.mark.parametrize("backend", [None, "reference", "sdpa", "native"])
def test_pages_of_nothing(backend: str | None) -> None:
    q, k, v = qkv(HEADS, GROUP, 1, 0, WIDTH)
    if backend == "native" and missing():
        pytest.skip(f"until the kernels are built: {missing()}")
    is_nothing(attend_pages_on(backend, q, paged(k, v), Full(), Scoring(0.25)), (True, True))


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("left", [2**31 - 1, 2**31, 2**32 + 3, 2**40, 2**62, 2**63 - 1, 2**63, 2**70])
@EVERY_KERNEL
@SIZES
def test_a_window_longer_than_all_keys_is_causal(kernel: Attending, t: int, n: int, left: int, sinks: int) -> None:
    q, k, v = qkv(HEADS, GROUP, t, n, WIDTH)
    far, near = (kernel.run(Request(q, k, v, Window(width, sinks), Scoring(0.25))) for width in (left, n))
    assert torch.equal(far.out, near.out)
    assert torch.equal(far.lse, near.lse)
    many, all_of_them = (kernel.run(Request(q, k, v, Window(1, width), Scoring(0.25))) for width in (left, n))
    assert torch.equal(many.out, all_of_them.out)
    assert Window(left).visible_pairs(t, n) == Window(n).visible_pairs(t, n)


@pytest.mark.skipif(bool(missing()), reason=f"until the kernels are built: {missing()}")
@pytest.mark.parametrize("number", [1e-50, 1e-39, 1e39, 1e300])
def test_scales_that_float32_does_not_hold_are_refused(number: float) -> None:
    q, k, v = qkv(HEADS, GROUP, 1, 40, WIDTH)
    assert Native().refuse(Request(q, k, v, Full(), Scoring(number)))
    assert Native().refuse(Request(q, k, v, Full(), Scoring(0.25, number)))
    got = attend(q, k, v, Full(), Scoring(0.25, 1e-39)).lse
    torch.testing.assert_close(got, torch.full_like(got, 40.0).log())
