"""Sessions that step together are given what each is given alone, bit for bit, by one call of the kernel a layer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from headwise.engine.abreast import step_abreast
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.forms import Attended, Scoring
from headwise.kernels.native import decode, library
from headwise.plan import Plan
from tests.engine.test_reader import GEOMETRY, RECIPES, fresh, needs_kernels
from tests.fuzz.state import differences, state


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sets of calls each call of the decoding kernel had, of sessions that are made later."""
    found: list[int] = []
    real = library.library(None).headwise_decode

    class Counting:
        headwise_join = library.library(None).headwise_join

        @staticmethod
        def headwise_decode(sets: ctypes.Array[Any], count: int) -> None:
            found.append(count)
            real(sets, count)

    monkeypatch.setattr(decode, "library", lambda level: Counting)
    return found


def handed(sessions: Sequence[Session], tokens: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of all sessions for a layer."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((4, 32), (2, 32), (2, 16))
    made = (torch.randn(len(sessions), heads, tokens, width, generator=random) for heads, width in shapes)
    return tuple(one.to(sessions[0].dtype) for one in made)


def alone(session: Session, row: int, layer: int, own: tuple[torch.Tensor, ...], scoring: Scoring) -> torch.Tensor:
    return session.step(layer, *(x[row : row + 1] for x in own), scoring)


def scored(layer: int) -> Scoring:
    return Scoring(0.2, 30.0 if layer == 1 else None)


def read(recipes: Sequence[str], dtype: torch.dtype, length: int) -> list[Session]:
    """Sessions whose prompts, each of another length, were read."""
    sessions = [fresh(recipe, 1, dtype) for recipe in recipes]
    for row, session in enumerate(sessions):
        session.begin(length + 7 * row, "prefill")
        for layer in range(len(GEOMETRY.layers)):
            alone(session, 0, layer, handed([session], length + 7 * row, 100 * row + layer), scored(layer))
    return sessions


def step(sessions: Sequence[Session], layer: int, own: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return step_abreast(sessions, layer, *own, scored(layer))


@needs_kernels
@pytest.mark.parametrize(
    ("dtype", "threads", "steps"), [(torch.float32, 1, 70), (torch.bfloat16, 1, 5), (torch.float32, 2, 2)], ids=str
)
def test_every_session_is_given_what_it_is_given_alone(dtype: torch.dtype, threads: int, steps: int) -> None:
    """Over evictions, each session at its own time, and levels of precision beside windows."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sessions = read(RECIPES, dtype, 300)
        others = [session.fork() for session in sessions]
        for time in range(steps):
            if time in (2, 3):  # so that later on their evictions come at other steps
                for session in (*sessions[:2], *others[:2]):
                    session.begin(2, "decode")
                    for layer in range(len(GEOMETRY.layers)):
                        alone(session, 0, layer, handed([session], 2, time), scored(layer))
            for session in (*sessions, *others):
                session.begin(1, "decode")
            for layer in range(len(GEOMETRY.layers)):
                own = handed(sessions, 1, 1000 + 3 * time + layer)
                single = [alone(one, row, layer, own, scored(layer)) for row, one in enumerate(others)]
                assert torch.equal(step(sessions, layer, own), torch.cat(single))
        for one, other in zip(sessions, others, strict=True):
            assert not differences(state(one), state(other))
            assert one.ledger.operations == other.ledger.operations
    finally:
        torch.set_num_threads(before)


@needs_kernels
def test_a_layer_is_one_call_of_the_kernel(kernel_calls: list[int]) -> None:
    """Whatever the codecs, lengths and evictions; a session that selects is read by itself, but where a window is."""
    joined = ["", "int8", "int4(32)", "int2", "streaming(0.3)", "snapkv(50, window=8) | ada", "h2o(40)"]
    for some, most in ((joined, [7, 7, 7]), ([*joined, "exact_topk(16) | int8"], [7, 7, 8])):
        sessions = read(some, torch.float32, 60)
        for session in sessions:
            session.begin(1, "decode")
        for layer in range(len(GEOMETRY.layers)):
            kernel_calls.clear()
            step(sessions, layer, handed(sessions, 1, layer))
            assert max(kernel_calls) == most[layer]
            assert len(kernel_calls) == 1 or most[layer] < len(some)


@needs_kernels
def test_prompts_and_drafts_are_refused() -> None:
    session = Session(Plan.uniform(GEOMETRY, ""))
    session.begin(20, "prefill")
    with pytest.raises(SessionError, match="one by one"):
        step([session], 0, handed([session], 20, 0))


@needs_kernels
def test_work_that_is_cut_for_all_together_gives_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the law above would find, were the calls of all sessions one set."""

    def as_one(self: decode.Ready, *others: decode.Ready) -> list[Attended]:
        every = (self, *others)
        calls = [call for one in every for call in one.decode._calls]
        joined = (decode._Call * len(calls))(*calls)
        self.decode.kernel((decode.Calls * 1)(decode.Calls(ctypes.addressof(joined), len(calls))), 1)
        return [one.whole() for one in every]

    sessions = read(["", "int8", "int4(32)"], torch.float32, 300)
    others = [session.fork() for session in sessions]
    for session in (*sessions, *others):
        session.begin(1, "decode")
    own = handed(sessions, 1, 5)
    wanted = step(others, 0, own)
    monkeypatch.setattr(decode.Ready, "run", as_one)
    found = step(sessions, 0, own)
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, wanted)
