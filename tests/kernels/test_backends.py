"""The law of the room of kernels: whatever a backend does not refuse, it computes as the reference does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from headwise.errors import HeadwiseError
from headwise.forms import (
    Blocks,
    Causal,
    Codes,
    Full,
    Scoring,
    Sinks,
    Tokens,
    Union,
    VerticalSlash,
    Weighted,
    Where,
    Window,
)
from headwise.kernels import ops
from headwise.kernels.dispatch import BACKENDS, Backend, Op, Record, noted, noting, only
from headwise.kernels.request import Request
from tests.attention_cases import qkv

SHAPES = ((1, 1), (1, 40), (3, 40), (40, 40), (33, 70))
SCORINGS = (Scoring(0.3), Scoring(0.3, 1.5))
SINKS = Sinks(torch.tensor([[0.5, -2.0], [3.0, 1.0]]))  # of what scores tell; `attend` is asked of keys alone
OPS = {name: op for name, op in vars(ops).items() if isinstance(op, Op)}
REFERENCE = BACKENDS.get("reference").kernels


def forms(t: int, n: int) -> Iterator[Where]:
    blocks = torch.ones(2, -(-t // 16), -(-n // 16), dtype=torch.bool)
    tokens = Tokens([torch.arange(0, n, 3), torch.arange(n - 1, n)])
    yield from (Causal(), Full(), Window(5, 2), Blocks.from_map(16, blocks), tokens, Union((tokens, Window(3))))
    yield VerticalSlash((torch.tensor([0]), torch.tensor([n // 2])), (torch.tensor([0]), torch.arange(min(2, n))))
    yield Weighted(tokens, tuple(torch.full((1, 1, len(one)), 0.5) for one in tokens.indices))


def requests() -> Iterator[tuple[Any, ...]]:
    for t, n in SHAPES:
        for scoring in SCORINGS:
            for width in (32, 48):  # torch's fused kernels take equal ones
                for where in forms(t, n):
                    request = Request(*qkv(2, 2, t, n, 32, width), where, scoring)
                    request.check()  # as everybody who asks a backend has done before
                    yield (request,)


def scored(*more: Any) -> Callable[[], Iterator[tuple[Any, ...]]]:
    """Cases of operations on scores by a form."""

    def cases() -> Iterator[tuple[Any, ...]]:
        for (request,) in requests():
            for scoring in (request.scoring, replace(request.scoring, sinks=SINKS)):
                yield (request.q, request.k, request.where, scoring, *more)

    return cases


def causal(*more: Any) -> Callable[[], Iterator[tuple[Any, ...]]]:
    """Cases of operations on causal scores; a callable of the queries stands for what depends on them."""

    def cases() -> Iterator[tuple[Any, ...]]:
        for t, n in SHAPES:
            q, k, _ = qkv(2, 2, t, n, 32)
            for scoring in (*SCORINGS, Scoring(0.3, sinks=SINKS)):
                yield (q, k, scoring, *(one(q) if callable(one) else one for one in more))

    return cases


def lowered(q: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, q.shape[:3].numel()).view(q.shape[:3])


def estimated() -> Iterator[tuple[Any, ...]]:
    for q, k, scoring, block, below in causal(16, lowered)():
        yield q, Codes.of(k, 7), scoring, block, below


def chosen() -> Iterator[tuple[Any, ...]]:
    for n in (1, 40, 333):
        scores = torch.randn(3, n, generator=torch.Generator().manual_seed(n)).round(decimals=1)
        protect = torch.arange(n).expand(3, n) < 2
        for counts in (0, 7, torch.tensor([1, n, 5])):
            yield scores, counts, protect, 4, 4 * n - 3


def coded() -> Iterator[tuple[Any, ...]]:
    for bits, group, minimum in ((8, 64, False), (4, 32, True), (2, 16, True), (4, 20, True)):
        yield torch.randn(2, 5, 64 if group != 20 else 40, generator=torch.manual_seed(bits)), bits, group, minimum


def packed() -> Iterator[tuple[Any, ...]]:
    for x, bits, group, minimum in coded():
        yield REFERENCE["encode"].run(x, bits, group, minimum), x.shape[-1], group, torch.float32


def products() -> Iterator[tuple[Any, ...]]:
    for rows, inner, outer in ((1, 33, 7), (16, 64, 9), (40, 16, 3)):
        x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
        yield from ((x, weight, None), (x, weight, torch.randn(outer)))


CASES: dict[str, Callable[[], Iterator[tuple[Any, ...]]]] = {
    "attend": requests,
    "column_mass": scored(0, None),
    "column_peaks": scored(),
    "group_mass": causal(),
    "row_lse": scored(),
    "row_entropy": scored(),
    "block_maxima": causal(16, None),
    "estimated_maxima": estimated,
    "best_scores": lambda: ((q, k) for q, k, _ in causal()()),
    "choose_blocks": chosen,
    "encode": coded,
    "decode": packed,
    "linear": products,
}
PAGED = {"attend_pages", "prepare_pages", "prepare_append"}  # tests/cache, tests/engine/test_reader.py


def parts(result: Any) -> list[torch.Tensor]:
    """The tensors of a result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        return [result[name] for name in sorted(result)]
    return list(result) if isinstance(result, tuple) else [result.out, result.lse]


def test_every_operation_has_cases_and_a_reference() -> None:
    assert {op.name for op in OPS.values()} == {*CASES, *PAGED}
    assert set(CASES) == set(REFERENCE)
    assert {name for backend in BACKENDS.all().values() for name in backend.kernels} == {*CASES, *PAGED}


@pytest.mark.parametrize(
    ("backend", "op"),
    [
        (name, op)
        for name, backend in BACKENDS.all().items()
        for op in CASES
        if op in backend.kernels and name != "reference"
    ],
)
def test_what_is_taken_is_computed_as_the_reference_does(backend: str, op: str) -> None:
    kernel, taken = BACKENDS.get(backend).kernels[op], 0
    if not BACKENDS.get(backend).available()[0]:
        pytest.skip(f"{backend} does not work here: {BACKENDS.get(backend).available()[1]}")
    for case in CASES[op]():
        if kernel.refuse(*case):
            continue
        taken += 1
        for got, want in zip(parts(kernel.run(*case)), parts(REFERENCE[op].run(*case)), strict=True):
            torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)
    assert taken, "every case was refused: the law has shown nothing"


@pytest.mark.parametrize("op", CASES)
def test_what_is_refused_is_noted_and_computed_by_the_next(op: str) -> None:
    case = next(CASES[op]())
    with noted() as records:
        vars(ops)[op](*case)
    first = records[0]
    assert first.op == op
    assert first.backend not in first.refusals and all(first.refusals.values())
    with only("reference"), noted() as records:
        vars(ops)[op](*case)
    assert records == [Record(op, "reference", {})]


def test_nobody_is_asked_in_vain() -> None:
    (case,) = next(requests())
    with only("decoded"), pytest.raises(HeadwiseError, match="none has it"):
        ops.attend(case)
    with only("sdpa"), pytest.raises(HeadwiseError, match=r"sdpa: softcap=1\.5"):
        ops.attend(Request(case.q, case.k, case.v, case.where, SCORINGS[1]))
    with only("natif"), pytest.raises(HeadwiseError, match="did you mean 'native'"):
        ops.attend(case)


def test_a_backend_made_known_later_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = next(requests())
    ops.attend(case)
    monkeypatch.setattr(BACKENDS, "_things", dict(BACKENDS.all()))
    monkeypatch.setattr(BACKENDS, "size", BACKENDS.size)
    BACKENDS.add("later", Backend("later", 0, lambda: (True, ""), {"attend": REFERENCE["attend"]}))
    with noted() as records:
        ops.attend(case)
    assert records[0].backend == "later"


def test_notes_end_with_their_block() -> None:
    seen: list[Record] = []
    (case,) = next(requests())
    with noting(seen.append):
        ops.attend(case)
        with noted() as inner:
            ops.attend(case)
    ops.attend(case)
    assert len(seen) == len(inner) == 1
