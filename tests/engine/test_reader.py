"""The short way of decoding gives bit for bit what the long way gives, wherever the pages lie meanwhile."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch

from headwise.engine.read import read
from headwise.engine.reader import Reader
from headwise.engine.session import Session
from headwise.forms import Scoring
from headwise.geometry import Geometry
from headwise.kernels.dispatch import BACKENDS
from headwise.plan import Plan
from headwise.recipe import Recipe
from tests.fuzz.state import differences, state

GEOMETRY = Geometry.uniform(4, 2, 32, 16, (None, None, 24), 4096)
RECIPES = [
    "", "int8", "int4(32)", "int4(16)", "int2", "streaming(0.3)", "snapkv(50, window=8) | ada", "h2o(40)",
    "razor(echo=0.5)", "quest(16, skip_layers=0)", "exact_topk(16) | int8", "kivi(window=8)", "balanced",
]  # fmt: skip
SCORING = Scoring(0.2)
needs_kernels = pytest.mark.skipif(
    not BACKENDS.get("native").available()[0], reason="until the kernels are built: all decoding goes the long way"
)


def fresh(recipe: str, rows: int, dtype: torch.dtype) -> Session:
    other = {
        "snapkv(50, window=8) | ada": "int8",
        "int2": "streaming(0.3)",
        "h2o(40)": "int4(32)",
        "balanced": "kivi(window=8)",
    }.get(recipe, recipe)
    row = (Recipe.parse(recipe), Recipe.parse(other))  # two groups a layer
    return Session(Plan.uniform(GEOMETRY, "") if recipe == "" else Plan(GEOMETRY, (row,) * 3), rows=rows, dtype=dtype)


def step(session: Session, tokens: int, seed: int, total: int | None = None) -> torch.Tensor:
    """One step of all layers; what every layer gave."""
    random = torch.Generator().manual_seed(seed)
    session.begin(tokens, "prefill" if tokens > 4 else "decode", total=total)
    outs = []
    for layer in range(len(GEOMETRY.layers)):
        q, k, v = (
            torch.randn(session.rows, heads, tokens, width, generator=random, dtype=torch.float32).to(session.dtype)
            for heads, width in ((4, 32), (2, 32), (2, 16))
        )
        outs.append(session.step(layer, q, k, v, Scoring(0.2, 30.0 if layer == 1 else None)))
    return torch.stack(outs)


def lived(session: Session) -> tuple[list[torch.Tensor], Session]:
    """A life in which pages grow, leave, move, go back and are copied."""
    outs = [step(session, 50, 0, 90), step(session, 40, 1, 90)]
    outs += [step(session, 1, 10 + place) for place in range(70)]  # grows, and evicts after 64
    outs += [step(session, count, 100 + count) for count in (2, 3, 1)]
    for group in session.groups:
        group.store.permute_pages(torch.Generator().manual_seed(0))
    outs.append(step(session, 1, 200))
    step(session, 1, 201)
    session.abort()
    outs.append(step(session, 2, 202))
    session.truncate(min(session.seen) - 2)
    outs.append(step(session, 1, 203))
    fork = session.fork()
    outs += [step(fork, 1, 204), step(session, 1, 205)]
    session.restore(fork)
    outs.append(step(session, 1, 206))
    return outs, session


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("recipe", RECIPES)
def test_both_ways_give_the_same_bits(
    recipe: str, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, held = lived(fresh(recipe, rows, dtype))
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "_kernel_for", lambda *_: None)
        long, other = lived(fresh(recipe, rows, dtype))
    assert all(torch.equal(one, two) for one, two in zip(short, long, strict=True))
    assert not differences(state(held), state(other))


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2])
def test_heads_of_mixed_groups_read_what_they_read_alone(rows: int) -> None:
    geometry = Geometry.uniform(8, 4, 32, 16, (None,), 4096)
    kinds = ("int8", "int4(32)", "", "int8")
    mixed = Session(Plan(geometry, (tuple(map(Recipe.parse, kinds)),)), rows=rows)
    alone = {kind: Session(Plan.uniform(geometry, kind), rows=rows) for kind in kinds}
    for tokens, phase in ((50, "prefill"), (1, "decode"), (3, "decode")):
        q, k, v = (torch.randn(rows, heads, tokens, width) for heads, width in ((8, 32), (4, 32), (4, 16)))
        outs = {}
        for name, session in (("mixed", mixed), *alone.items()):
            session.begin(tokens, phase)
            outs[name] = session.step(0, q, k, v, SCORING).unflatten(1, (4, 2))
        for head, kind in enumerate(kinds):
            assert torch.equal(outs["mixed"][:, head], outs[kind][:, head])
    assert mixed.ledger.operations["decode", "attend_pages", "native"] == 2 * 3


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 40, 90])
@pytest.mark.parametrize("recipe", ["snapkv(0.4, window=8) | balanced", "balanced"])
def test_tokens_of_several_levels_are_read_by_one_call(
    recipe: str, window: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever of the levels a window shows; lanes that hold differently much, of a batch. The long way cuts keys
    elsewhere, so that it rounds otherwise."""
    geometry = Geometry.uniform(8, 4, 64, 64, (window,), 4096)
    row = tuple(map(Recipe.parse, (recipe, "int8", recipe, "")))

    def outs() -> tuple[list[torch.Tensor], Session]:
        session, random = Session(Plan(geometry, (row,)), rows=2, dtype=dtype), torch.Generator().manual_seed(0)
        found = []
        for tokens in (150, *[1] * 100, 3, *[1] * 40):
            q, k, v = (torch.randn(2, heads, tokens, 64, generator=random).to(dtype) for heads in (8, 4, 4))
            if len(found) in (40, 90):  # tokens are taken back that a window was found for
                session.truncate(min(session.seen) - 3)
            session.begin(tokens, "prefill" if tokens > 4 else "decode")
            found.append(session.step(0, q, k, v, SCORING))
        return found, session

    long_way: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr("headwise.engine.layers.read", lambda reading, *own: (
            long_way.append(reading.step.tokens), read(reading, *own))[1])  # fmt: skip
        short, session = outs()
    assert {one for one in long_way if one < 100} <= ({3} if window else set())
    assert any(min(part.lengths) for group in session.layers[0] for part in group.store.parts[1:])
    monkeypatch.setattr(Reader, "_kernel_for", lambda *_: None)
    for one, two in zip(short, outs()[0], strict=True):
        torch.testing.assert_close(one, two, atol=2e-6 if dtype is torch.float32 else 2e-2, rtol=0)


@needs_kernels
def test_what_does_not_read_pages_in_place_goes_the_long_way() -> None:
    session = fresh("int4(16)", 1, torch.float32)
    step(session, 50, 0)
    step(session, 1, 1)
    assert "groups must be multiples of 32 channels" in " ".join(reason for _, _, reason in session.ledger.refusals)


@needs_kernels
def test_gradients_go_the_long_way() -> None:
    session = fresh("", 1, torch.float32)
    step(session, 50, 0)
    session.begin(1, "decode")
    q = torch.randn(1, 4, 1, 32, requires_grad=True)
    out = session.step(0, q, torch.randn(1, 2, 1, 32), torch.randn(1, 2, 1, 16), SCORING)
    out.sum().backward()
    assert q.grad is not None and bool(q.grad.any())


def calls(session: Session) -> tuple[int, set[str]]:
    """Python calls of the package in the middle layer of one decoding step, and the files that they are of."""
    session.begin(1, "decode")
    for layer in range(len(GEOMETRY.layers)):
        q, k, v = torch.randn(1, 4, 1, 32), torch.randn(1, 2, 1, 32), torch.randn(1, 2, 1, 16)
        seen: list[str] = []

        def note(frame: FrameType, event: str, argument: Any, seen: list[str] = seen) -> None:
            if event == "call" and "headwise" in frame.f_code.co_filename and "tests" not in frame.f_code.co_filename:
                seen.append(frame.f_code.co_filename)

        sys.setprofile(note)
        try:
            session.step(layer, q, k, v, SCORING)
        finally:
            sys.setprofile(None)
        if layer == 1:
            found = seen
    return len(found), set(found)


@needs_kernels
def test_the_way_of_a_token_is_short() -> None:
    """In front of these are the two of the seam; `benchmarks/token_path.py` counts all."""
    session = fresh("", 1, torch.float32)
    step(session, 50, 0)
    calls(session)  # the kernel is found
    count, files = calls(session)
    assert count <= 40 - 3 and len(files) <= 8 - 2, (count, files)
