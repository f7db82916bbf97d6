"""`attend` and `attend_pages` over every form, shape, type and level, against a float64 masked softmax."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from headwise.attention import attend
from headwise.attention.attend import attend_pages
from headwise.cache.paged import PagedStore
from headwise.cache.shape import Shape
from headwise.forms import Attended, Blocks, Causal, Full, Scoring, Tokens, Until, VerticalSlash, Where, Window
from headwise.kernels.native.backend import Native
from headwise.kernels.native.library import LEVELS, supported
from headwise.kernels.request import PagesRequest, Request
from tests.attention_cases import attend_on, exact
from tests.fuzz import Machine

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
WIDTHS = (1, 3, 8, 16, 32, 48, 64, 80, 96, 128, 256)
CODECS = ("plain", "int8", "int4/16", "int4/32", "int2/64")
HUGE = (2**31 - 1, 2**31, 2**32 + 3, 2**40, 2**62)


def subset(rng: Random, n: int) -> Tensor:
    """Ascending numbers below n: none, all, or some."""
    count = rng.choice((0, 0, 1, n, rng.randint(0, n)))
    return torch.tensor(sorted(rng.sample(range(n), min(count, n))), dtype=torch.int64)


def form(rng: Random, h: int, t: int, n: int, causal: bool = False) -> Where:
    """Any form for t queries over n keys."""
    kind = rng.randrange(1 if causal else 0, 8)
    if kind == 0:
        return Full()
    if kind == 1:
        return Causal()
    if kind == 2:
        return Window(rng.choice((0, 1, n - 1, n, rng.randint(0, n), *HUGE)), rng.choice((0, 1, n, n + 5, *HUGE)))
    if kind == 3:
        return Tokens([subset(rng, n) for _ in range(h)])
    if kind == 4:
        size = rng.choice((1, 5, 16, 64, 128, n + 3))
        chance = rng.choice((0.0, 0.3, 1.0))
        made = torch.Generator().manual_seed(rng.randrange(2**32))
        drawn = torch.rand(h, -(-t // size), -(-n // size), generator=made)
        return Blocks.from_map(size, drawn < chance)
    if kind == 5:
        return VerticalSlash(tuple(subset(rng, n) for _ in range(h)), tuple(subset(rng, n) for _ in range(h)))
    if kind == 6:
        last = [[rng.choice((-1, 0, n, 2**31, 2**40, rng.randint(0, n))) for _ in range(n)] for _ in range(h)]
        return Until(torch.tensor(last))
    return form(rng, h, t, n, causal=True) | form(rng, h, t, n, causal=True)


def close(
    got: Attended, want: tuple[Tensor, Tensor], dtype: torch.dtype, told: str, limit: float | None = None
) -> None:
    """Output and log-sum-exp agree; a query that sees nothing has 0 and -inf. limit: other than the type's own."""
    limit = limit or TOLERANCE[dtype]
    out, lse = want
    assert got.out.dtype == dtype, told
    torch.testing.assert_close(got.out.double(), out, atol=limit, rtol=limit, msg=lambda text: f"{told}: out, {text}")
    torch.testing.assert_close(got.lse.double(), lse, atol=limit, rtol=limit, msg=lambda text: f"{told}: lse, {text}")


def scoring(rng: Random, d: int) -> dict[str, float | None]:
    """A scale and perhaps a cap."""
    return {"scale": rng.choice((d**-0.5, 0.25, 1.0 / d)), "softcap": rng.choice((None, None, 0.5, 30.0))}


def sizes(rng: Random) -> tuple[int, int, int, int, int, int]:
    """h, g, t, n, d, e; few queries as in decoding or more as in a prompt."""
    h, g = rng.choice((1, 2, 3)), rng.choice((1, 2, 4, 7))
    n = rng.choice((1, 2, 15, 16, 17, 63, 64, 65, 130, rng.randint(1, 200)))
    t = min(n, rng.choice((1, 1, 2, 16, 17, 64, 70, n)))
    d = rng.choice(WIDTHS)
    return h, g, t, n, d, rng.choice((d, d, rng.choice(WIDTHS)))


def tensors(rng: Random, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Gaussian tensors of these shapes."""
    made = torch.Generator().manual_seed(rng.randrange(2**32))
    return [torch.randn(shape, generator=made).to(dtype) for shape in shapes]


def levels() -> list[str]:
    """The instruction levels that this machine runs."""
    return [level for level in LEVELS if not supported(level)]


def tensor_case(seed: int) -> None:
    """One call of `attend`: by itself, by every backend and every level that does not refuse it."""
    rng = Random(seed)
    h, g, t, n, d, e = sizes(rng)
    dtype = rng.choice(list(TOLERANCE))
    q, k, v = tensors(rng, dtype, (h, g, t, d), (h, n, d), (h, n, e))
    where, how = form(rng, h, t, n), scoring(rng, d)
    visible = where.dense(t, n).expand(h, t, n)
    want = exact(q, k, v, visible, **how)[:2]
    told = f"seed {seed}, {where}, {dtype}, h={h} g={g} t={t} n={n} d={d} e={e}, {how}"
    close(attend(q, k, v, where, Scoring(**how)), want, dtype, told)
    close(attend_on("reference", q, k, v, where, Scoring(**how)), want, dtype, f"reference, {told}")
    request = Request(q, k, v, where, Scoring(**how))
    for level in levels():
        native = Native(level)
        if not native.refuse(request):
            close(native.attend(request), want, dtype, f"{level}, {told}")


def paged(rng: Random, h: int, d: int, e: int, dtype: torch.dtype) -> PagedStore:
    """A store of lanes of any lengths, empty ones too, in any codec, some of whose entries were evicted."""
    names = (rng.choice(CODECS), rng.choice(CODECS))
    store = PagedStore(Shape(h, d, e, dtype, codecs=names))
    ragged = rng.random() < 0.5
    most = rng.choice((1, 16, 17, 100))
    lengths = [rng.choice((0, most, rng.randint(0, most))) if ragged else most for _ in range(h)]
    k, v = tensors(rng, dtype, (h, most, d), (h, most, e))
    store.append(k, v, torch.arange(most).expand(h, most), lengths)
    if rng.random() < 0.3:
        kept = [subset(rng, length) for length in lengths] if ragged else [subset(rng, most)] * h
        store.keep(kept)
    return store


def page_case(seed: int) -> None:
    """One call of `attend_pages` over lanes of any lengths, in any codec, by every level that does not refuse it."""
    rng = Random(seed)
    h, g, _, _, d, e = sizes(rng)
    dtype = rng.choice(list(TOLERANCE))
    d, e = (max(4, one // 4 * 4) for one in (d, e))
    store = paged(rng, h, d, e, dtype)
    shortest = min(store.lengths)
    t = rng.choice((1, 1, 2, 16))
    if t > shortest:
        where: Where = Full()
    elif len(set(store.lengths)) > 1:
        where = rng.choice((Full(), Causal(), Window(rng.choice((0, 3, 40, *HUGE)), rng.choice((0, 4, *HUGE)))))
    else:
        where = form(rng, h, t, shortest)
    (q,), how = tensors(rng, dtype, (h, g, t, d)), scoring(rng, d)
    wants = [
        exact(q[i : i + 1], store.keys(i, i + 1), store.segment(i, i + 1).values, lane(where, i, t, n), **how)
        for i, n in enumerate(store.lengths)
    ]
    out, lse = (torch.cat([one[place] for one in wants]) for place in (0, 1))
    coded = store.shape.codecs != ("plain", "plain") and dtype in (torch.bfloat16, torch.float16)
    limit = TOLERANCE[torch.bfloat16] if coded else None  # codes are multiplied in bfloat16, far finer than their steps
    told = f"pages, seed {seed}, {where}, {dtype}, {store.shape}, lengths {store.lengths}, g={g} t={t}, {how}"
    for here, view, part in store.pieces(0, h, where, t):
        want = out[here], lse[here]
        close(attend_pages(q[here], view, part, Scoring(**how)), want, dtype, told, limit)
        request = PagesRequest(q[here], view, part, Scoring(**how))
        for level in levels():
            native = Native(level)
            if not native.refuse_pages(request):
                close(native.attend_pages(request), want, dtype, f"{level}, {told}", limit)


def lane(where: Where, i: int, t: int, n: int) -> Tensor:
    """What the queries of lane i see of its n tokens: bool [1, t, n]."""
    drawn = where.dense(t, n)
    return drawn[i : i + 1] if where.heads is not None else drawn


def machines() -> dict[str, Machine]:
    """Both, by name."""

    def of(case: Callable[[int], None]) -> Machine:
        def machine(seed: int, examples: int) -> None:
            rng = Random(seed)
            for _ in range(examples):
                case(rng.randrange(2**32))

        return machine

    return {"attend": of(tensor_case), "pages": of(page_case)}
